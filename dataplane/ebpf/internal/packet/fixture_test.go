package packet

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Packets made by hand, layer by layer, with right checksums; and a reader of
// packets that shares nothing with the programs.

const (
	typeIPv4, typeIPv6 = 0x0800, 0x86dd

	flagFIN, flagSYN, flagRST, flagACK = 1, 2, 4, 16
)

// ethernet puts a frame around a packet.
func ethernet(kind uint16, packet []byte) []byte {
	b := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, byte(kind>>8), byte(kind))
	return append(b, packet...)
}

// frameOf puts a frame around an IP packet.
func frameOf(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return ethernet(typeIPv6, packet)
	}
	return ethernet(typeIPv4, packet)
}

// ip4 is an IPv4 packet; fragment is flags and offset.
func ip4(src, dst netip.Addr, protocol byte, fragment uint16, options, payload []byte) []byte {
	b := []byte{byte(0x45 + len(options)/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(options)+len(payload)))
	b = append(b, 0, 77)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, 64, protocol, 0, 0)
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), options...)
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, payload...)
}

// ip6 is an IPv6 packet; next is the protocol of what payload begins with.
func ip6(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, next, 64)
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
}

// extension is an IPv6 extension header of 8*(1+more) bytes before payload.
func extension(next, more byte, payload []byte) []byte {
	b := make([]byte, 8*(1+int(more)))
	b[0], b[1] = next, more
	return append(b, payload...)
}

// fragment6 is the fragment header; field is offset and flags.
func fragment6(next byte, field uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, field)
	return append(append(b, 0, 0, 0, 77), payload...)
}

// ip is an IP packet without anything odd.
func ip(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() {
		return ip4(src, dst, protocol, 0, nil, payload)
	}
	return ip6(src, dst, protocol, payload)
}

// pseudo is the pseudo header that checksums cover.
func pseudo(src, dst netip.Addr, protocol byte, length int) []byte {
	b := append(bytes.Clone(src.AsSlice()), dst.AsSlice()...)
	b = append(b, 0, protocol)
	return binary.BigEndian.AppendUint16(b, uint16(length))
}

// tcp is a TCP segment; options is a multiple of four bytes.
func tcp(src, dst netip.AddrPort, flags byte, options, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, byte(5+len(options)/4)<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(append(b, options...), payload...)
	binary.BigEndian.PutUint16(b[16:], ^sum(append(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(b)), b...)))
	return b
}

// udp is a UDP datagram; without a sum the checksum is 0.
func udp(src, dst netip.AddrPort, summed bool, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
	b = append(binary.BigEndian.AppendUint16(b, uint16(8+len(payload))), 0, 0)
	b = append(b, payload...)
	if summed {
		s := ^sum(append(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, len(b)), b...))
		if s == 0 {
			s = 0xffff
		}
		binary.BigEndian.PutUint16(b[6:], s)
	}
	return b
}

// sctp is an SCTP packet with one chunk.
func sctp(sport, dport uint16, chunk byte) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	b = append(b, make([]byte, 8)...)
	b = append(b, chunk, 0, 0, 20)
	b = append(b, make([]byte, 16)...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// tooBig is the ICMP error that a packet is too large for the way of src.
func tooBig(src, dst netip.Addr, quote []byte) []byte {
	if src.Is4() {
		b := append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quote...)
		binary.BigEndian.PutUint16(b[2:], ^sum(b))
		return ip4(src, dst, unix.IPPROTO_ICMP, 0, nil, b)
	}
	b := append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, quote...)
	binary.BigEndian.PutUint16(b[2:], ^sum(append(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(b)), b...)))
	return ip6(src, dst, unix.IPPROTO_ICMPV6, b)
}

// view is a packet as the reader of these tests sees it.
type view struct {
	src, dst netip.Addr
	protocol byte
	l3, l4   int
	end      int  // of what the IP header speaks for
	fragment bool // any but a whole datagram
}

// look reads a frame; false: it is no IP packet that hosts take.
func look(b []byte) (v view, ok bool) {
	if len(b) < 14 {
		return v, false
	}
	v.l3 = 14
	switch p := b[14:]; binary.BigEndian.Uint16(b[12:]) {
	case typeIPv4:
		if len(p) < 20 || p[0]>>4 != 4 {
			return v, false
		}
		header, length := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if header < 20 || length < header || length > len(p) {
			return v, false
		}
		v.src, v.dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		v.protocol, v.l4, v.end = p[9], 14+header, 14+length
		v.fragment = binary.BigEndian.Uint16(p[6:])&0x3fff != 0
		return v, true
	case typeIPv6:
		if len(p) < 40 || p[0]>>4 != 6 || 40+int(binary.BigEndian.Uint16(p[4:])) > len(p) {
			return v, false
		}
		v.src, v.dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		v.protocol, v.l4, v.end = p[6], 14+40, 14+40+int(binary.BigEndian.Uint16(p[4:]))
		return v, v.skip(b)
	}
	return v, false
}

// skip goes past extension headers.
func (v *view) skip(b []byte) bool {
	for {
		if !slices.Contains([]byte{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT}, v.protocol) {
			return true
		}
		if v.l4+8 > v.end {
			return false
		}
		header := 8 * (1 + int(b[v.l4+1]))
		if v.protocol == unix.IPPROTO_FRAGMENT {
			header = 8
			field := binary.BigEndian.Uint16(b[v.l4+2:])
			v.fragment = v.fragment || field&0xfff9 != 0
			if field&0xfff8 != 0 {
				v.protocol, v.l4 = b[v.l4], v.l4+header
				return v.l4 <= v.end
			}
		}
		v.protocol, v.l4 = b[v.l4], v.l4+header
		if v.l4 > v.end {
			return false
		}
	}
}

// summed tells whether all checksums of a frame are right; of fragments just
// that of the IP header, since the other is about all of them together.
func summed(b []byte) bool {
	v, ok := look(b)
	if !ok || v.dst.Is4() && sum(b[v.l3:v.l4]) != 0xffff {
		return false
	}
	if v.fragment {
		return true
	}
	l4 := b[v.l4:v.end]
	whole := func() bool { return sum(append(pseudo(v.src, v.dst, v.protocol, len(l4)), l4...)) == 0xffff }
	switch v.protocol {
	case unix.IPPROTO_TCP:
		return len(l4) >= 20 && whole()
	case unix.IPPROTO_UDP:
		return len(l4) >= 8 && (int(binary.BigEndian.Uint16(l4[4:])) == len(l4)) && (v.dst.Is4() && l4[6] == 0 && l4[7] == 0 || whole())
	case unix.IPPROTO_ICMPV6:
		return len(l4) >= 8 && whole()
	case unix.IPPROTO_ICMP:
		return len(l4) >= 8 && sum(l4) == 0xffff
	case unix.IPPROTO_SCTP:
		if len(l4) < 16 {
			return false
		}
		zeroed := bytes.Clone(l4)
		clear(zeroed[8:12])
		return crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) == binary.LittleEndian.Uint32(l4[8:])
	}
	return true
}

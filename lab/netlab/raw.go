package netlab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of a TCP segment.
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

const (
	ipv4Header     = 20
	ipv6Header     = 40
	fragmentHeader = 8
	tcpHeader      = 20
	udpHeader      = 8
	hopLimit       = 64
)

// Packet is a TCP or UDP packet that is sent as it is, whatever its addresses
// and numbers. Its IP version is that of To; an IPv4-mapped address is IPv6.
type Packet struct {
	Protocol string // TCP or UDP
	From, To netip.AddrPort
	Flags    byte   // TCP
	Seq      uint32 // TCP
	Payload  []byte // UDP
}

// Whole returns the packet with its IP header.
func (p Packet) Whole() []byte { return p.ip(p.number(), p.transport(), nil) }

// Fragments returns the packet in pieces that carry up to size bytes each, a
// multiple of eight.
func (p Packet) Fragments(id uint16, size int) [][]byte {
	rest, next := p.transport(), p.number()
	var pieces [][]byte
	for offset := 0; len(rest) > 0; offset += size {
		n := min(size, len(rest))
		piece := fragment{id: id, offset: offset, more: n < len(rest)}
		pieces = append(pieces, p.ip(next, rest[:n], &piece))
		rest = rest[n:]
	}
	return pieces
}

// fragment is the place of a piece in its packet.
type fragment struct {
	id     uint16
	offset int // in bytes
	more   bool
}

func (p Packet) number() byte {
	if p.Protocol == TCP {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// transport returns the TCP or UDP header with its checksum, and the payload.
func (p Packet) transport() []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.From.Port()), p.To.Port())
	checksum := 6
	if p.Protocol == TCP {
		checksum = 16
		b = binary.BigEndian.AppendUint32(b, p.Seq)
		b = append(b, 0, 0, 0, 0, tcpHeader/4<<4, p.Flags, 0xff, 0xff, 0, 0, 0, 0)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(udpHeader+len(p.Payload)))
		b = append(append(b, 0, 0), p.Payload...)
	}
	pseudo := append(p.From.Addr().AsSlice(), p.To.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, p.number())
	binary.BigEndian.PutUint16(b[checksum:], internetChecksum(append(pseudo, b...)))
	return b
}

// ip puts an IP header before a payload, which may be a piece of a packet.
func (p Packet) ip(next byte, payload []byte, f *fragment) []byte {
	if p.To.Addr().Is4() {
		b := make([]byte, ipv4Header, ipv4Header+len(payload))
		b[0] = 4<<4 | ipv4Header/4
		binary.BigEndian.PutUint16(b[2:], uint16(ipv4Header+len(payload)))
		if f != nil {
			binary.BigEndian.PutUint16(b[4:], f.id)
			binary.BigEndian.PutUint16(b[6:], uint16(f.offset/8)|bit(f.more)<<13)
		}
		b[8], b[9] = hopLimit, next
		copy(b[12:], p.From.Addr().AsSlice())
		copy(b[16:], p.To.Addr().AsSlice())
		binary.BigEndian.PutUint16(b[10:], internetChecksum(b))
		return append(b, payload...)
	}
	if f != nil {
		header := []byte{next, 0}
		header = binary.BigEndian.AppendUint16(header, uint16(f.offset)|bit(f.more))
		header = binary.BigEndian.AppendUint32(header, uint32(f.id))
		next, payload = unix.IPPROTO_FRAGMENT, append(header, payload...)
	}
	b := make([]byte, ipv6Header, ipv6Header+fragmentHeader+len(payload))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, hopLimit
	copy(b[8:], p.From.Addr().AsSlice())
	copy(b[24:], p.To.Addr().AsSlice())
	return append(b, payload...)
}

func bit(b bool) uint16 {
	if b {
		return 1
	}
	return 0
}

func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Send sends IP packets, which begin with their headers, where the host's routes lead.
func (h *Host) Send(packets ...[]byte) error {
	return h.Do(func() error {
		for _, b := range packets {
			family, to := unix.AF_INET, unix.Sockaddr(nil)
			if b[0]>>4 == 4 {
				to = &unix.SockaddrInet4{Addr: [4]byte(b[16:20])}
			} else {
				family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(b[24:40])}
			}
			if err := sendBy(family, unix.SOCK_RAW, unix.IPPROTO_RAW, b, to); err != nil {
				return fmt.Errorf("sending a packet from %s: %w", h.Name, err)
			}
		}
		return nil
	})
}

// SendFrame sends an IP packet in a frame to a hardware address.
func (h *Host) SendFrame(device string, to net.HardwareAddr, packet []byte) error {
	protocol := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	at := &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: link.Attrs().Index, Halen: uint8(len(to))}
	copy(at.Addr[:], to)
	err = h.Do(func() error { return sendBy(unix.AF_PACKET, unix.SOCK_DGRAM, 0, packet, at) })
	if err != nil {
		return fmt.Errorf("sending a frame from %s: %w", h.Name, err)
	}
	return nil
}

// HardwareAddr returns the hardware address of a host's device.
func (h *Host) HardwareAddr(device string) (net.HardwareAddr, error) {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// sendBy sends one packet by a socket of its own.
func sendBy(family, kind, protocol int, b []byte, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Sendto(fd, b, 0, to)
}

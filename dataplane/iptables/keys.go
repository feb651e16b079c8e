package iptables

import (
	"net/netip"
	"strconv"

	"github.com/switchyard-io/switchyard/dataplane"
)

// layout says what the nibbles of a tree's keys are and how rules match them:
// an address, then one nibble of protocol, then four of port. A key may end
// early: an address alone is any protocol and port of it.
type layout struct {
	root, prefix string // of the names of chains, see treeChain
	flag         string // what the address is matched with: "-d" or "-s"
	addr         int    // nibbles of address: 0, 8 or 32
}

// addrNibbles is the number of nibbles in an address.
func addrNibbles(f dataplane.Family) int {
	if f == dataplane.IPv4 {
		return 8
	}
	return 32
}

// addrKey is the key of an address.
func addrKey(a netip.Addr) string {
	var b [32]byte
	raw := a.AsSlice()
	for i, octet := range raw {
		b[2*i], b[2*i+1] = octet>>4, octet&15
	}
	return string(b[:2*len(raw)])
}

// prefixKey is the key of a prefix whose length is a multiple of four bits.
func prefixKey(p netip.Prefix) string {
	return addrKey(p.Addr())[:p.Bits()/4]
}

// portKey is the key of a protocol and port.
func portKey(p dataplane.Protocol, port uint16) string {
	return string([]byte{protocolNibble(p), byte(port >> 12), byte(port >> 8 & 15), byte(port >> 4 & 15), byte(port & 15)})
}

func protocolNibble(p dataplane.Protocol) byte {
	switch p {
	case dataplane.TCP:
		return 0
	case dataplane.UDP:
		return 1
	default:
		return 2
	}
}

// protocolName is how rules call a protocol.
func protocolName(nibble byte) string {
	switch nibble {
	case 0:
		return "tcp"
	case 1:
		return "udp"
	default:
		return "sctp"
	}
}

// match appends the matches of a rule for a key, where the first known nibbles
// have been checked on the way to its chain. It writes them as iptables-save does.
func (l layout) match(to []byte, known int, key string) []byte {
	if known < l.addr {
		n := min(len(key), l.addr)
		to = append(append(to, ' '), l.flag...)
		to = append(append(to, ' '), prefixText(key[:n], l.addr)...)
	}
	if len(key) <= l.addr {
		return to
	}
	protocol := protocolName(key[l.addr])
	to = append(append(to, " -p "...), protocol...)
	if port := key[l.addr+1:]; port != "" {
		to = append(append(append(to, " -m "...), protocol...), " --dport "...)
		to = appendPorts(to, port)
	}
	return to
}

// prefixText writes the nibbles of an address as a prefix.
func prefixText(nibbles string, whole int) string {
	var b [16]byte
	for i := range len(nibbles) {
		b[i/2] |= nibbles[i] << (4 * (1 - i%2))
	}
	a := netip.AddrFrom16(b)
	if whole == 8 {
		a = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.PrefixFrom(a, 4*len(nibbles)).String()
}

// appendPorts writes the range of ports that begin with some nibbles.
func appendPorts(to []byte, nibbles string) []byte {
	first := 0
	for i := range 4 {
		first <<= 4
		if i < len(nibbles) {
			first |= int(nibbles[i])
		}
	}
	to = strconv.AppendInt(to, int64(first), 10)
	if last := first + 1<<(4*(4-len(nibbles))) - 1; last > first {
		to = strconv.AppendInt(append(to, ':'), int64(last), 10)
	}
	return to
}

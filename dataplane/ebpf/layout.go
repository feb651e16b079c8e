package ebpf

import (
	"encoding/binary"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
)

// What bpf/types.h and bpf/limits.h have as #define, which BTF does not carry.
const (
	maxPools = 8
	// maxSearch is the largest pool in which affinity finds an endpoint again.
	maxSearch = 1 << 20

	frontendMark      = 1
	frontendClusterIP = 2

	endpointLocal = 1

	ifEmptyReject = 0
	ifEmptyDrop   = 1

	detectsPodsV4 = 1
	detectsPodsV6 = 2
	packetsBegin  = 4
	holdPods      = 8
)

// Lengths of the parts of longest-prefix keys.
const (
	mappedBits = 96 // before the IPv4 address in the one form of addresses
	sourceBits = 64 // before the address in a source_key
)

// toAddr is an address in the one form that both families have in the maps.
func toAddr(a netip.Addr) sockAddr {
	b := a.As16()
	var out sockAddr
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

func fromAddr(a sockAddr) netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// toPort is a port in network byte order, as the programs compare it; it is its
// own inverse.
func toPort(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func fromAddrPort(a sockAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(a), toPort(port))
}

// prefixBits is the length of a prefix in the one form of addresses.
func prefixBits(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return uint32(mappedBits + p.Bits())
	}
	return uint32(p.Bits())
}

// fromPrefix is the prefix of an address and its length in the one form.
func fromPrefix(a sockAddr, bits uint32) netip.Prefix {
	addr := fromAddr(a)
	if addr.Is4() {
		return netip.PrefixFrom(addr, int(bits)-mappedBits)
	}
	return netip.PrefixFrom(addr, int(bits))
}

func toRange(p netip.Prefix) sockRangeKey {
	p = p.Masked()
	return sockRangeKey{Bits: prefixBits(p), Addr: toAddr(p.Addr())}
}

func toFrontendKey(a netip.AddrPort, p dataplane.Protocol) sockFrontendKey {
	return sockFrontendKey{Addr: toAddr(a.Addr()), Port: toPort(a.Port()), Protocol: uint8(p)}
}

// markKey is where a ClusterIP is marked as one.
func markKey(a sockAddr) sockFrontendKey { return sockFrontendKey{Addr: a} }

func isMark(k sockFrontendKey) bool { return k.Port == 0 && k.Protocol == 0 }

// checkOf is frontend_check of bpf/types.h.
func checkOf(k sockFrontendKey) uint32 {
	return k.Addr.W[0] ^ k.Addr.W[1] ^ k.Addr.W[2] ^ k.Addr.W[3] ^ (uint32(k.Protocol)<<16 | uint32(k.Port))
}

func toSlot(service, generation uint32, e dataplane.Endpoint) sockSlot {
	s := sockSlot{Service: service, Generation: generation, Addr: toAddr(e.Addr.Addr()), Port: toPort(e.Addr.Port())}
	if e.Local {
		s.Flags = endpointLocal
	}
	return s
}

func fromSlot(s sockSlot) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: fromAddrPort(s.Addr, s.Port), Local: s.Flags&endpointLocal != 0}
}

func toIfEmpty(v dataplane.Verdict) uint8 {
	if v == dataplane.Drop {
		return ifEmptyDrop
	}
	return ifEmptyReject
}

func fromIfEmpty(v uint8) dataplane.Verdict {
	if v == ifEmptyDrop {
		return dataplane.Drop
	}
	return dataplane.Reject
}

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

	// Kinds of frontend.
	frontendAddress  = 0
	frontendNodePort = 1

	detectsPodsV4 = 1
	detectsPodsV6 = 2
	holdPods      = 4
	nodeOnly      = 8
	askNamespaces = 16
	tcpOnly       = 32
	standAside    = 64
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

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

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

func toFrontendKey(f dataplane.Frontend, p dataplane.Protocol) sockFrontendKey {
	key := sockFrontendKey{Addr: toAddr(f.Addr.Addr()), Port: toPort(f.Addr.Port()), Protocol: uint8(p), Kind: frontendAddress}
	if f.Kind == dataplane.NodePort {
		key.Kind = frontendNodePort
	}
	return key
}

// checkOf is frontend_check of bpf/types.h.
func checkOf(k sockFrontendKey) uint32 {
	return k.Addr.W[0] ^ k.Addr.W[1] ^ k.Addr.W[2] ^ k.Addr.W[3] ^ (uint32(k.Kind)<<24 | uint32(k.Protocol)<<16 | uint32(k.Port))
}

func toSlot(service, generation uint32, e dataplane.Endpoint) sockSlot {
	return sockSlot{Service: service, Generation: generation, Addr: toAddr(e.Addr.Addr()), Port: toPort(e.Addr.Port())}
}

// fromSlot is the endpoint of a slot; whether it is local is not in it.
func fromSlot(s sockSlot) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: fromAddrPort(s.Addr, s.Port)}
}

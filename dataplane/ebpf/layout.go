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

// sum is the sum of bpf/types.h, by which a reader knows that it read a value as
// it was written.
type sum uint64

const (
	sumStart  sum = 0x53776974
	sumFactor sum = 0x5bd1e995
)

func (s sum) add(high, low uint32) sum {
	s = (s ^ sum(high)<<32 ^ sum(low)) * sumFactor
	return s ^ s>>32
}

func (s sum) addAddr(a sockAddr) sum { return s.add(a.W[0], a.W[1]).add(a.W[2], a.W[3]) }

// toFrontend is the value of a frontend, with frontend_check.
func toFrontend(k sockFrontendKey, service uint32, pool, inside uint8) sockFrontend {
	port := uint32(k.Kind)<<24 | uint32(k.Protocol)<<16 | uint32(k.Port)
	check := sumStart.addAddr(k.Addr).add(port, service).add(uint32(pool), uint32(inside))
	return sockFrontend{Check: uint32(check), Service: service, Pool: pool, Inside: inside}
}

// sealed is a master entry with pool_check of each pool.
func sealed(s sockService) sockService {
	for i := range s.Pools {
		p := &s.Pools[i]
		p.Check = uint32(sumStart.add(s.Id, s.Generation).add(s.AffinityS, p.First).add(0, p.Count))
	}
	return s
}

// toSlot is the value of a slot, with slot_check.
func toSlot(k sockSlotKey, e dataplane.Endpoint) sockSlot {
	s := sockSlot{Service: k.Service, Generation: k.Generation}
	s.Place.Addr, s.Place.Port = toAddr(e.Addr.Addr()), toPort(e.Addr.Port())
	s.Check = uint32(sumStart.add(k.Service, k.Generation).add(k.Slot, uint32(s.Place.Port)).addAddr(s.Place.Addr))
	return s
}

// fromSlot is the endpoint of a slot; whether it is local is not in it.
func fromSlot(s sockSlot) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: fromAddrPort(s.Place.Addr, s.Place.Port)}
}

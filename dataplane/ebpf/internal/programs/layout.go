package programs

import (
	"encoding/binary"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
)

// MaxPools is how many different pools a Service port can have.
const MaxPools = len(SockService{}.Pools)

// ToAddr returns an address in the one form that both families have in the maps.
func ToAddr(a netip.Addr) SockAddr {
	b := a.As16()
	var out SockAddr
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

func fromAddr(a SockAddr) netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// ToPort returns a port in network byte order, as the programs compare it. It is its
// own inverse.
func ToPort(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// FromAddrPort returns the address and port that the maps hold in that form.
func FromAddrPort(a SockAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(a), ToPort(port))
}

// ToFrontendKey returns a frontend's key.
func ToFrontendKey(f dataplane.Frontend, p dataplane.Protocol) SockFrontendKey {
	key := SockFrontendKey{Addr: ToAddr(f.Addr.Addr()), Port: ToPort(f.Addr.Port()), Protocol: uint8(p), Kind: uint8(SockFrontendKindFRONTEND_ADDRESS)}
	if f.Kind == dataplane.NodePort {
		key.Kind = uint8(SockFrontendKindFRONTEND_NODEPORT)
	}
	return key
}

// sum is the sum of bpf/types.h, by which a reader knows that it read a value as
// it was written.
type sum uint64

const sumStart = sum(SockSumSUM_START)

func (s sum) add(high, low uint32) sum {
	s = (s ^ sum(high)<<32 ^ sum(low)) * sum(SockSumSUM_FACTOR)
	return s ^ s>>32
}

func (s sum) addAddr(a SockAddr) sum { return s.add(a.W[0], a.W[1]).add(a.W[2], a.W[3]) }

// ToFrontend returns the value of a frontend, with frontend_check.
func ToFrontend(k SockFrontendKey, service uint32, pool, inside uint8) SockFrontend {
	port := uint32(k.Kind)<<24 | uint32(k.Protocol)<<16 | uint32(k.Port)
	check := sumStart.addAddr(k.Addr).add(port, service).add(uint32(pool), uint32(inside))
	return SockFrontend{Check: uint32(check), Service: service, Pool: pool, Inside: inside}
}

// Sealed returns a master entry with pool_check of each pool.
func Sealed(s SockService) SockService {
	for i := range s.Pools {
		p := &s.Pools[i]
		p.Check = uint32(sumStart.add(s.Id, s.Generation).add(s.AffinityS, p.First).add(0, p.Count))
	}
	return s
}

// ToSlot returns the value of a slot, with slot_check.
func ToSlot(k SockSlotKey, e dataplane.Endpoint) SockSlot {
	s := SockSlot{Service: k.Service, Generation: k.Generation}
	s.Place.Addr, s.Place.Port = ToAddr(e.Addr.Addr()), ToPort(e.Addr.Port())
	s.Check = uint32(sumStart.add(k.Service, k.Generation).add(k.Slot, uint32(s.Place.Port)).addAddr(s.Place.Addr))
	return s
}

// FromSlot returns the endpoint of a slot; whether it is local is not in it.
func FromSlot(s SockSlot) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: FromAddrPort(s.Place.Addr, s.Place.Port)}
}

package policy

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// TestGatheredIsSortedOnceForAllPorts compares what a port gets of the shared
// list with a sort of just its endpoints, where slices overlap, contradict one
// another, are out of order and give a port name several numbers.
func TestGatheredIsSortedOnceForAllPorts(t *testing.T) {
	ports := []facts.ServicePort{{Name: "http", Protocol: dataplane.TCP}, {Name: "dns", Protocol: dataplane.UDP}, {Name: "dns", Protocol: dataplane.TCP}}
	var room Room
	for seed := range uint64(500) {
		room.entries = room.entries[:0]
		r := rand.New(rand.NewPCG(seed, 0))
		sets := make([]*facts.Slice, r.IntN(7))
		for i := range sets {
			sets[i] = anySlice(r, ports)
		}
		for _, family := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			g := room.gather(sets, family)
			for _, p := range ports {
				if got, want := g.of(p), sortedAlone(sets, p, family); !slices.Equal(got, want) {
					t.Fatalf("seed %d, %s %v:\n got %v\nwant %v", seed, family, p, got, want)
				}
			}
		}
	}
}

func anySlice(r *rand.Rand, ports []facts.ServicePort) *facts.Slice {
	s := &facts.Slice{Family: []dataplane.Family{dataplane.IPv4, dataplane.IPv4, dataplane.IPv6}[r.IntN(3)]}
	for _, p := range ports {
		if r.IntN(3) > 0 {
			s.Ports = append(s.Ports, facts.SlicePort{Name: p.Name, Protocol: p.Protocol, Port: uint16(8080 + r.IntN(2))})
		}
	}
	for range r.IntN(8) {
		a := netip.AddrFrom4([4]byte{10, 244, 0, byte(r.IntN(9))})
		if s.Family == dataplane.IPv6 {
			a = netip.AddrFrom16(a.As16())
		}
		s.Endpoints = append(s.Endpoints, facts.Endpoint{Addr: a, Ready: r.IntN(2) > 0, Serving: r.IntN(2) > 0, Terminating: r.IntN(2) > 0})
	}
	if r.IntN(2) > 0 {
		slices.SortStableFunc(s.Endpoints, func(a, b facts.Endpoint) int { return a.Addr.Compare(b.Addr) })
	}
	return s
}

// sortedAlone is the rule of §1.2, said as plainly as can be.
func sortedAlone(sets []*facts.Slice, port facts.ServicePort, family dataplane.Family) []endpoint {
	var all []endpoint
	for _, s := range sets {
		for _, p := range s.Ports {
			if s.Family != family || p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			for i := range s.Endpoints {
				all = append(all, endpoint{netip.AddrPortFrom(s.Endpoints[i].Addr, p.Port), &s.Endpoints[i]})
			}
		}
	}
	slices.Reverse(all) // the sort is stable: of equal ones the last slice's is first
	slices.SortStableFunc(all, func(a, b endpoint) int {
		return cmp.Or(a.addr.Compare(b.addr), falseFirst(a.Terminating, b.Terminating), falseFirst(!a.Ready, !b.Ready), falseFirst(!a.Serving, !b.Serving))
	})
	return slices.CompactFunc(all, func(a, b endpoint) bool { return a.addr == b.addr })
}

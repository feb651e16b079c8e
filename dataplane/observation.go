package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Observation is what the kernel forwards, read back from it. Two of them, or
// one and the Expect of a Snapshot, can be compared with Differences.
type Observation struct {
	Frontends []ObservedFrontend // sorted by protocol, then address
	// Other is what else is not as the Backend left it, in plain words: a hook
	// without our program, a rule that masquerades and is gone.
	Other []string
	// Whole says that Frontends and Other tell all that a Sync with prev nil would
	// mend, so that without a difference none is needed.
	Whole bool
}

// ObservedFrontend is one frontend as the kernel holds it. Fields that a
// backend's kernel objects do not tell apart (ExternalIP and LoadBalancer, say)
// are not in it.
type ObservedFrontend struct {
	Protocol Protocol
	Addr     netip.AddrPort // of a NodePort: unspecified address
	Pool     ObservedPool   // who answers clients from outside the node
	Inside   ObservedPool   // who answers the node and its pods; like Pool where there is one pool for all
}

// ObservedPool is the endpoints that a new connection may reach, sorted, and
// what becomes of it where there are none.
type ObservedPool struct {
	Endpoints []netip.AddrPort
	IfEmpty   Verdict // Reject where there are Endpoints
}

// Expect is the Observation that a kernel gives which forwards exactly s.
func Expect(s *Snapshot) *Observation {
	o := &Observation{}
	for port := range s.Ports.All() {
		for _, f := range port.Frontends {
			of := ObservedFrontend{Protocol: port.ID.Protocol, Addr: f.Addr, Pool: expectPool(f.Pool)}
			of.Inside = of.Pool
			if f.Inside != nil {
				of.Inside = expectPool(f.Inside)
			}
			o.Frontends = append(o.Frontends, of)
		}
	}
	o.Sort()
	return o
}

func expectPool(p *Pool) ObservedPool {
	op := ObservedPool{}
	for _, e := range p.Endpoints {
		op.Endpoints = append(op.Endpoints, e.Addr)
	}
	if len(p.Endpoints) == 0 {
		op.IfEmpty = p.IfEmpty
	}
	return op
}

// without is the Observation without the frontends of some families.
func (o *Observation) without(families []Family) *Observation {
	if len(families) == 0 {
		return o
	}
	less := *o
	less.Frontends = slices.DeleteFunc(slices.Clone(o.Frontends), func(f ObservedFrontend) bool {
		return slices.Contains(families, FamilyOf(f.Addr.Addr()))
	})
	return &less
}

// Sort puts the frontends, and the endpoints of each, into order.
func (o *Observation) Sort() {
	for i := range o.Frontends {
		slices.SortFunc(o.Frontends[i].Pool.Endpoints, netip.AddrPort.Compare)
		slices.SortFunc(o.Frontends[i].Inside.Endpoints, netip.AddrPort.Compare)
	}
	slices.SortFunc(o.Frontends, func(a, b ObservedFrontend) int { return a.compare(b) })
}

func (f ObservedFrontend) compare(g ObservedFrontend) int {
	return cmp.Or(cmp.Compare(f.Protocol, g.Protocol), f.Addr.Compare(g.Addr))
}

// Differences lists in plain words where the kernel (o) is not as wanted; none:
// it is. Both are sorted; Other counts where it is of o.
func (o *Observation) Differences(want *Observation) []string {
	diffs := slices.Clone(o.Other) // first, as it may be the cause of what follows
	have, wanted := o.Frontends, want.Frontends
	for len(have) > 0 || len(wanted) > 0 {
		switch {
		case len(wanted) == 0 || len(have) > 0 && have[0].compare(wanted[0]) < 0:
			diffs = append(diffs, fmt.Sprintf("%s %s is in the kernel and not wanted", have[0].Protocol, have[0].Addr))
			have = have[1:]
		case len(have) == 0 || have[0].compare(wanted[0]) > 0:
			diffs = append(diffs, fmt.Sprintf("%s %s is wanted and not in the kernel", wanted[0].Protocol, wanted[0].Addr))
			wanted = wanted[1:]
		default:
			diffs = append(diffs, have[0].differences(wanted[0])...)
			have, wanted = have[1:], wanted[1:]
		}
	}
	return diffs
}

func (f ObservedFrontend) differences(want ObservedFrontend) []string {
	var diffs []string
	for _, p := range []struct {
		who        string
		have, want ObservedPool
	}{{"clients from outside", f.Pool, want.Pool}, {"the node and its pods", f.Inside, want.Inside}} {
		if !slices.Equal(p.have.Endpoints, p.want.Endpoints) || p.have.IfEmpty != p.want.IfEmpty {
			diffs = append(diffs, fmt.Sprintf("%s %s for %s: the kernel has %s, wanted is %s", f.Protocol, f.Addr, p.who, p.have, p.want))
		}
	}
	return diffs
}

func (p ObservedPool) String() string {
	if len(p.Endpoints) == 0 {
		return p.IfEmpty.String()
	}
	words := make([]string, len(p.Endpoints))
	for i, e := range p.Endpoints {
		words[i] = e.String()
	}
	return strings.Join(words, " ")
}

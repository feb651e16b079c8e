package watcher

import (
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Around is what decisions depend on beside the Services.
type Around struct {
	Snapshot *dataplane.Snapshot // the last built; nil: none yet
	Local    []netip.Prefix      // what is local on this node: addresses, and destinations of local routes
}

// Around tells how it stands now.
func (w *Watcher) Around() Around {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Around{Snapshot: w.snapshot, Local: slices.Clone(w.local)}
}

// Explain tells of the ServicePorts of the Services that match how they came to
// be what they are, sorted by ID. It judges anew what it tells, so that nothing
// is kept for it.
func (w *Watcher) Explain(match func(facts.Name) bool) []policy.Explained {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []policy.Explained
	for name, s := range w.services {
		if s.facts == nil || !match(name) {
			continue
		}
		for i := range s.facts.Ports {
			for _, family := range w.set.Families {
				if slices.ContainsFunc(s.facts.ClusterIPs, func(a netip.Addr) bool { return dataplane.FamilyOf(a) == family }) {
					out = append(out, w.explain(s, i, family))
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b policy.Explained) int { return a.ID.Compare(b.ID) })
	return out
}

func (w *Watcher) explain(s *service, port int, family dataplane.Family) policy.Explained {
	x := policy.Explain(s.facts, s.facts.Ports[port], family, s.slices, w.env)
	byID := func(p *dataplane.ServicePort, id dataplane.PortID) int { return p.ID.Compare(id) }
	if i, ok := slices.BinarySearchFunc(s.ports, x.ID, byID); ok {
		x.Built = s.ports[i]
	}
	return x
}

// At finds the ServicePort that has the frontend of an address, port and
// protocol (of a NodePort: the unspecified address). without are others that
// would have it, were it free.
func (w *Watcher) At(addr netip.AddrPort, protocol dataplane.Protocol) (x policy.Explained, without []string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	contenders := slices.Clone(w.claims.by[address{addr, protocol}])
	if len(contenders) == 0 {
		return x, nil, false
	}
	slices.SortFunc(contenders, (*claim).compare)
	first := contenders[0]
	for _, c := range contenders[1:] {
		without = append(without, c.name())
	}
	return w.explain(first.service, first.port, dataplane.FamilyOf(addr.Addr())), without, true
}

// NodeName is the name of this node, as objects have it.
func (w *Watcher) NodeName() string { return w.set.NodeName }

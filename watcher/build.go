package watcher

import (
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// advance reports that there is something to build, if there is.
func (w *Watcher) advance() {
	w.started = w.started || w.ready()
	if w.started && (w.snapshot == nil || w.moved || len(w.dirty) > 0) {
		w.changed()
	}
}

// Next returns the newest Snapshot, or nil while nothing in it is new. It is for
// one caller, and builds what changed since the last call: so many changes cost
// one build where the caller is busy. Whom Options name are told of the Snapshot
// before it is returned.
func (w *Watcher) Next() *dataplane.Snapshot {
	next, triggers, lost := w.build()
	w.losses.tell(lost)
	if next != nil && w.set.Programming != nil {
		w.set.Programming(next.Revision, triggers)
	}
	return next
}

// build makes the next Snapshot if it differs from the last. The cost is that of
// what changed, but for a change of the Node that policy depends on: then every
// Service is built again, and those that come out the same keep their pointers.
func (w *Watcher) build() (*dataplane.Snapshot, []time.Time, []Loss) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.started {
		return nil, nil, nil
	}
	last := w.snapshot
	if last == nil {
		last, w.moved = &dataplane.Snapshot{}, true
	}
	next := *last
	if w.moved {
		w.surround(&next)
		w.moved = false
	}
	put, remove := w.rebuild()
	triggers, lost := w.triggers, w.claims.takeLost()
	w.triggers = nil // if nothing is new, what they are of changed nothing here
	switch {
	case w.snapshot == nil:
		next.Ports = dataplane.MakePorts(put...)
	case len(put) > 0 || len(remove) > 0:
		next.Ports = last.Ports.With(put, remove)
	case next.Node == last.Node && slices.Equal(next.ServiceCIDRs, last.ServiceCIDRs):
		return nil, nil, lost
	}
	next.Revision++
	w.snapshot = &next
	return w.snapshot, triggers, lost
}

// surround brings what is around the Services into next: the Node, and the
// ranges of ClusterIPs. Where policy depends on it, all Services are dirty.
func (w *Watcher) surround(next *dataplane.Snapshot) {
	env := policy.Env{
		Families:      w.set.Families,
		ExternalIPs:   w.set.ExternalIPs,
		MasqueradeAll: w.set.MasqueradeAll,
		NodeIPs:       w.set.nodeIPs(w.node),
		LocalPods:     w.set.localPods(w.node),
	}
	if w.node != nil {
		env.Zone = w.node.Zone
	}
	if next.Node == nil || !env.Equal(w.env) {
		for _, s := range w.services {
			w.dirty.add(s)
		}
	}
	w.env = env
	node := &dataplane.Node{
		Name:       w.set.NodeName,
		Zone:       env.Zone,
		NodePorts:  w.set.nodePorts.choose(w.set.Families, w.local, env.NodeIPs, w.set.LocalhostNodePorts),
		Everywhere: w.set.nodePorts.everywhere(w.set.Families, env.NodeIPs),
		Bound:      bound(w.set.Families, w.local),
		LocalPods:  env.LocalPods,
	}
	if next.Node == nil || !equalNode(next.Node, node) {
		next.Node = node
	}
	if cidrs := w.serviceCIDRs(); !slices.Equal(cidrs, next.ServiceCIDRs) {
		next.ServiceCIDRs = cidrs
	}
}

// serviceCIDRs returns every ServiceCIDR's ranges of the families forwarded,
// sorted and disjoint. ServiceCIDRs may overlap.
func (w *Watcher) serviceCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range w.cidrs {
		for _, p := range c.CIDRs {
			if slices.Contains(w.set.Families, dataplane.FamilyOf(p.Addr())) {
				out = append(out, p)
			}
		}
	}
	return policy.Disjoint(out)
}

// rebuild builds the dirty services: which ServicePorts are new, and which are gone.
func (w *Watcher) rebuild() (put []*dataplane.ServicePort, remove []dataplane.PortID) {
	var room policy.Room
	for _, s := range w.dirty.take() {
		var built []*dataplane.ServicePort
		if s.facts != nil {
			built = policy.Ports(s.facts, w.claims.held(s), s.slices, w.env, &room)
		}
		built = policy.Keep(s.ports, built)
		old := s.ports
		for _, p := range built {
			for len(old) > 0 && old[0].ID.Compare(p.ID) < 0 {
				remove = append(remove, old[0].ID)
				old = old[1:]
			}
			if len(old) > 0 && old[0].ID == p.ID {
				if old[0] != p {
					put = append(put, p)
				}
				old = old[1:]
				continue
			}
			put = append(put, p)
		}
		for _, p := range old {
			remove = append(remove, p.ID)
		}
		s.ports = built
		w.forget(s)
	}
	return put, remove
}

func equalNode(a, b *dataplane.Node) bool {
	return a.Name == b.Name && a.Zone == b.Zone && slices.Equal(a.NodePorts, b.NodePorts) &&
		slices.Equal(a.Bound, b.Bound) && slices.Equal(a.Everywhere, b.Everywhere) &&
		slices.Equal(a.LocalPods.CIDRs, b.LocalPods.CIDRs) && a.LocalPods.Interface == b.LocalPods.Interface &&
		a.LocalPods.InterfacePrefix == b.LocalPods.InterfacePrefix
}

// withSlice puts f in, or in the place of the one of its name.
func withSlice(in []*facts.Slice, f *facts.Slice) []*facts.Slice {
	i, there := findSlice(in, f.Name)
	if there {
		in[i] = f
		return in
	}
	return slices.Insert(in, i, f)
}

func withoutSlice(in []*facts.Slice, f *facts.Slice) []*facts.Slice {
	if i, there := findSlice(in, f.Name); there {
		return slices.Delete(in, i, i+1)
	}
	return in
}

func findSlice(in []*facts.Slice, name facts.Name) (int, bool) {
	return slices.BinarySearchFunc(in, name, func(s *facts.Slice, n facts.Name) int { return s.Name.Compare(n) })
}

// waits is what the first Snapshot waits for: Services and EndpointSlices
// however long it takes, or forwarding would be torn down for want of news;
// then, for a while, a Node that says what policy needs (KUBE-PROXY §0).
//
// The time runs from when the objects are known. kube-proxy's runs from its
// start, so that an API server which is late makes it go on without the Node.
type waits struct {
	services, slices, addresses bool
	since                       time.Time
	timer                       *time.Timer
}

func (t *waits) stop() {
	if t.timer != nil {
		t.timer.Stop()
	}
}

// ready reports whether the first Snapshot can be made.
func (w *Watcher) ready() bool {
	t := &w.waits
	if !t.services || !t.slices || !t.addresses {
		return false
	}
	missing, wait := w.missing()
	if missing == "" {
		t.stop()
		return true
	}
	if t.since.IsZero() {
		t.since = time.Now()
		w.set.Log.Info("waiting for the Node", "node", w.set.NodeName, "missing", missing, "longest", wait)
	}
	left := wait - time.Since(t.since)
	if left <= 0 {
		w.set.Log.Error("going on without the whole Node", "node", w.set.NodeName, "missing", missing, "waited", wait)
		return true
	}
	t.stop()
	t.timer = time.AfterFunc(left, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.advance()
	})
	return false
}

// missing is what the Node has not told, and how long that is worth waiting for.
func (w *Watcher) missing() (string, time.Duration) {
	switch n := w.node; {
	case n != nil && n.Final:
		return "", 0
	case n == nil:
		return "the Node object", w.set.NodeWait
	case len(w.set.nodeIPs(n)) == 0:
		return "its addresses", w.set.NodeWait
	case w.set.DetectLocal.Mode == NodeCIDR && len(n.PodCIDRs) == 0:
		return "its podCIDRs", w.set.PodCIDRWait
	}
	return "", 0
}

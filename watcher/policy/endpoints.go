package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// endpoint is what EndpointSlices say of one address and port of a ServicePort.
type endpoint struct {
	addr netip.AddrPort
	*facts.Endpoint
}

// lingering: it ends, and still answers until it has.
func (e endpoint) lingering() bool { return e.Serving && e.Terminating }

// lingers judges an endpoint where none is ready.
func (e endpoint) lingers() Reason {
	if e.lingering() {
		return Chosen
	}
	return e.unready()
}

// unready is why an endpoint that is not ready gets nothing.
func (e endpoint) unready() Reason {
	switch {
	case e.lingering():
		return Terminating
	case e.Terminating:
		return Stopped
	}
	return NotReady
}

// Room is what Ports works in, to be used for one Service after the other: of
// tens of thousands of them, what each leaves behind would be more memory than what
// is made of it. The zero value is ready.
type Room struct {
	entries   []entry
	endpoints []endpoint
	numbers   []uint16
}

// gathered is every endpoint of a Service in a family, sorted by address. It is
// the same for all ports of the Service.
type gathered struct {
	sets []*facts.Slice
	all  []entry
	room *Room
}

// entry is one endpoint of the EndpointSlice sets[set].
type entry struct {
	*facts.Endpoint
	set, index int32
}

// compare orders entries by address. Where slices say different things of one
// address, what is not terminating is first (§1.2), then ready, then serving,
// then the last slice by name: a rule that does not depend on which event came
// last.
func (e entry) compare(f entry) int {
	if c := e.Addr.Compare(f.Addr); c != 0 {
		return c
	}
	return cmp.Or(falseFirst(e.Terminating, f.Terminating), falseFirst(!e.Ready, !f.Ready), falseFirst(!e.Serving, !f.Serving),
		cmp.Compare(f.set, e.set), cmp.Compare(f.index, e.index))
}

// gather merges the endpoints of sets, which are sorted by name. Each of them is
// sorted by address as a rule, so that there is little to sort.
func (r *Room) gather(sets []*facts.Slice, family dataplane.Family) gathered {
	n := 0
	for _, s := range sets {
		if s.Family == family {
			n += len(s.Endpoints)
		}
	}
	// Behind what was gathered of another family, which stays.
	r.entries = slices.Grow(r.entries, n)
	g := gathered{sets: sets, all: r.entries[len(r.entries):len(r.entries)], room: r}
	var ends []int // of each set's entries
	for i, s := range sets {
		if s.Family != family {
			continue
		}
		start := len(g.all)
		for j := range s.Endpoints {
			g.all = append(g.all, entry{&s.Endpoints[j], int32(i), int32(j)})
		}
		if run := g.all[start:]; !slices.IsSortedFunc(run, entry.compare) {
			slices.SortFunc(run, entry.compare)
		}
		ends = append(ends, len(g.all))
	}
	r.entries = r.entries[:len(r.entries)+n]
	g.all = mergeRuns(g.all, ends)
	return g
}

// mergeRuns sorts entries of which each part up to one of ends is sorted.
func mergeRuns(all []entry, ends []int) []entry {
	if len(ends) < 2 {
		return all
	}
	spare := make([]entry, 0, len(all))
	for len(ends) > 1 {
		out, start := spare[:0], 0
		var after []int
		for i := 0; i < len(ends); i += 2 {
			middle, end := ends[i], ends[min(i+1, len(ends)-1)]
			out = merge(out, all[start:middle], all[middle:end])
			after = append(after, len(out))
			start = end
		}
		all, spare, ends = out, all, after
	}
	return all
}

func merge(out, a, b []entry) []entry {
	for len(a) > 0 && len(b) > 0 {
		if a[0].compare(b[0]) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// of returns the endpoints of a port, sorted by address and port; they are valid
// until the next call. The number of a named port is each EndpointSlice's own,
// and of several entries of one address and number the first counts.
func (g gathered) of(port facts.ServicePort) []endpoint {
	g.room.numbers = slices.Grow(g.room.numbers[:0], len(g.sets))
	numbers := g.room.numbers[:len(g.sets)] // 0: the slice has no such port
	clear(numbers)
	for i, s := range g.sets {
		for _, p := range s.Ports {
			if p.Name == port.Name && p.Protocol == port.Protocol {
				numbers[i] = p.Port
			}
		}
	}
	g.room.endpoints = slices.Grow(g.room.endpoints[:0], len(g.all))
	out := g.room.endpoints
	same := 0 // where those of the last address begin
	for _, e := range g.all {
		number := numbers[e.set]
		if number == 0 {
			continue
		}
		if same < len(out) && out[same].addr.Addr() != e.Addr {
			same = len(out)
		}
		out = append(out, endpoint{netip.AddrPortFrom(e.Addr, number), e.Endpoint})
		if last := out[same:]; len(last) > 1 {
			slices.SortStableFunc(last, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
			out = out[:same+len(slices.CompactFunc(last, func(a, b endpoint) bool { return a.addr == b.addr }))]
		}
	}
	return out
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// serving judges by whether an endpoint may keep its flows (§1.15). kube-proxy asks
// for the condition serving alone and so ends flows to unready pods of a
// Service with publishNotReadyAddresses, to which it sends new ones; ready
// counts here too.
func serving(e endpoint) Reason {
	if e.Serving || e.Ready {
		return Chosen
	}
	return e.unready()
}

// ending is every endpoint whose pod is terminating.
func ending(known []endpoint) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range known {
		if e.Terminating {
			out = append(out, e.addr)
		}
	}
	return out
}

// choose is the Endpoints that a rule leaves in: like, if it is just those, or else a
// slice of just their number.
func choose(known []endpoint, rule func(endpoint) Reason, like []dataplane.Endpoint) []dataplane.Endpoint {
	n, same := 0, true
	for _, e := range known {
		if rule(e) != Chosen {
			continue
		}
		same = same && n < len(like) && like[n] == chosen(e)
		n++
	}
	switch {
	case n == 0:
		return nil
	case same && n == len(like):
		return like
	}
	out := make([]dataplane.Endpoint, 0, n)
	for _, e := range known {
		if rule(e) == Chosen {
			out = append(out, chosen(e))
		}
	}
	return out
}

func chosen(e endpoint) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: e.addr, Local: e.Local, Unplaced: e.Place.Node() == ""}
}

// clusterSet is who answers under the traffic policy Cluster: the ready
// endpoints that topology leaves; where none is ready, those that linger,
// wherever they are (§1.3).
func clusterSet(known []endpoint, zone string) func(endpoint) Reason {
	if !slices.ContainsFunc(known, func(e endpoint) bool { return e.Ready }) {
		return endpoint.lingers
	}
	near := topology(known, zone)
	return func(e endpoint) Reason {
		if !e.Ready {
			return e.unready()
		}
		return near(e)
	}
}

// localSet is who answers under the traffic policy Local: the ready endpoints
// of this node; where there are none, those that linger on it. Topology has no
// part in it (§1.3).
func localSet(known []endpoint) func(endpoint) Reason {
	ready := slices.ContainsFunc(known, func(e endpoint) bool { return e.Local && e.Ready })
	return func(e endpoint) Reason {
		switch {
		case !e.Ready && !e.lingering():
			return e.unready() // it would be, wherever it is
		case !e.Local:
			return NotLocal
		case ready && !e.Ready:
			return Terminating
		}
		return Chosen
	}
}

// reachable: an endpoint anywhere could answer, were it not for a policy. It
// decides between Drop and Reject (§1.6).
func reachable(known []endpoint) bool {
	return slices.ContainsFunc(known, func(e endpoint) bool { return e.Ready || e.lingering() })
}

// topology picks the endpoints that hints give to this node (§1.4): by node
// where every ready endpoint has a hint for nodes and one is for this node,
// else by zone in the same way, else all. So one endpoint without hints, or
// none for this zone, means that all serve.
func topology(known []endpoint, zone string) func(endpoint) Reason {
	allNodes, thisNode, allZones, thisZone := true, false, true, false
	inZone := func(e endpoint) bool { return zone != "" && e.Place.HintedTo(zone) }
	for _, e := range known {
		if !e.Ready {
			continue
		}
		allNodes = allNodes && e.NodeHinted
		thisNode = thisNode || e.ForThisNode
		allZones = allZones && e.Place.Hinted()
		thisZone = thisZone || inZone(e)
	}
	unless := func(in bool, why Reason) Reason {
		if in {
			return Chosen
		}
		return why
	}
	switch {
	case allNodes && thisNode:
		return func(e endpoint) Reason { return unless(e.ForThisNode, OtherNode) }
	case allZones && thisZone:
		return func(e endpoint) Reason { return unless(inZone(e), OtherZone) }
	}
	return func(endpoint) Reason { return Chosen }
}

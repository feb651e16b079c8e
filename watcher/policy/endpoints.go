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

// endpoints gathers the endpoints of a port in a family, sorted by address. The
// number of a named port is each EndpointSlice's own.
//
// Where slices say different things of one address and port, what is not
// terminating wins (§1.2), then ready, then serving, then the last slice by
// name: a rule that does not depend on which event came last.
func endpoints(sets []*facts.Slice, port facts.ServicePort, family dataplane.Family) []endpoint {
	n := 0
	for _, s := range sets {
		n += len(s.Endpoints)
	}
	all := make([]endpoint, 0, n)
	for _, s := range sets {
		if s.Family != family {
			continue
		}
		for _, p := range s.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				all = append(all, endpoint{netip.AddrPortFrom(e.Addr, p.Port), e})
			}
		}
	}
	slices.Reverse(all) // the sort is stable: of equal ones the last slice's is first
	slices.SortStableFunc(all, func(a, b endpoint) int {
		return cmp.Or(a.addr.Compare(b.addr), falseFirst(a.Terminating, b.Terminating),
			falseFirst(!a.Ready, !b.Ready), falseFirst(!a.Serving, !b.Serving))
	})
	return slices.CompactFunc(all, func(a, b endpoint) bool { return a.addr == b.addr })
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

// serving is every endpoint that may keep its flows (§1.15). kube-proxy asks
// for the condition serving alone and so ends flows to unready pods of a
// Service with publishNotReadyAddresses, to which it sends new ones; ready
// counts here too.
func serving(known []endpoint) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(known))
	for _, e := range known {
		if e.Serving || e.Ready {
			out = append(out, e.addr)
		}
	}
	return out
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

// choose is the Endpoints that a rule leaves in, in a slice of just their number.
func choose(known []endpoint, rule func(endpoint) Reason) []dataplane.Endpoint {
	n := 0
	for _, e := range known {
		if rule(e) == Chosen {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]dataplane.Endpoint, 0, n)
	for _, e := range known {
		if rule(e) == Chosen {
			out = append(out, dataplane.Endpoint{Addr: e.addr, Local: e.Local, Unplaced: e.Place.Node() == ""})
		}
	}
	return out
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
	inZone := func(e endpoint) bool { return zone != "" && slices.Contains(e.Zones, zone) }
	for _, e := range known {
		if !e.Ready {
			continue
		}
		allNodes = allNodes && e.NodeHinted
		thisNode = thisNode || e.ForThisNode
		allZones = allZones && len(e.Zones) > 0
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

package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// index knows whose a UDP flow of one family is, by its original destination.
// It is kept from pass to pass, so that a change costs what it touches.
type index struct {
	family dataplane.Family
	// addrs are the frontends with an address of their own, nodePorts the others.
	addrs     map[netip.AddrPort]*dataplane.ServicePort
	nodePorts map[uint16]*dataplane.ServicePort
	local     []netip.Prefix // where nodePorts answer
	// gone are frontends that went since the last whole pass, a NodePort with the
	// unspecified address.
	gone map[netip.AddrPort]bool
	due  bool // entries may be stale
}

func newIndex(f dataplane.Family) *index {
	return &index{
		family:    f,
		addrs:     map[netip.AddrPort]*dataplane.ServicePort{},
		nodePorts: map[uint16]*dataplane.ServicePort{},
		gone:      map[netip.AddrPort]bool{},
	}
}

// update takes in one difference between two Snapshots. The order of updates
// does not matter, also where a frontend moves from one ServicePort to another.
func (x *index) update(old, cur *dataplane.ServicePort) {
	if !x.covers(old) && !x.covers(cur) {
		return
	}
	x.due = x.due || leavesStale(old, cur)
	if old != nil {
		for _, f := range old.Frontends {
			x.remove(f, old)
		}
	}
	if cur != nil {
		for _, f := range cur.Frontends {
			x.put(f, cur)
		}
	}
}

func (x *index) covers(p *dataplane.ServicePort) bool {
	return p != nil && p.ID.Protocol == dataplane.UDP && p.ID.Family == x.family
}

func (x *index) remove(f dataplane.Frontend, owner *dataplane.ServicePort) {
	if f.Kind == dataplane.NodePort {
		if x.nodePorts[f.Addr.Port()] == owner {
			delete(x.nodePorts, f.Addr.Port())
			x.gone[f.Addr] = true
		}
		return
	}
	if x.addrs[f.Addr] == owner {
		delete(x.addrs, f.Addr)
		x.gone[f.Addr] = true
	}
}

func (x *index) put(f dataplane.Frontend, owner *dataplane.ServicePort) {
	delete(x.gone, f.Addr)
	if f.Kind == dataplane.NodePort {
		x.nodePorts[f.Addr.Port()] = owner
		return
	}
	x.addrs[f.Addr] = owner
}

// setNode follows the addresses where NodePorts answer. A new one may have
// flows from before, which went to the node itself; what leads to an address
// that left can no longer arrive.
func (x *index) setNode(n *dataplane.Node) {
	before := x.local
	x.local = nil
	for _, p := range n.NodePorts {
		if dataplane.FamilyOf(p.Addr()) == x.family {
			x.local = append(x.local, p)
			x.due = x.due || len(x.nodePorts) > 0 && !slices.Contains(before, p)
		}
	}
}

// leavesStale reports whether a change may leave entries that lead nowhere. To
// add endpoints to others does not, so that growing costs nothing here.
func leavesStale(old, cur *dataplane.ServicePort) bool {
	if old == nil || cur == nil || !slices.EqualFunc(old.Frontends, cur.Frontends,
		func(a, b dataplane.Frontend) bool { return a.Addr == b.Addr }) {
		return true
	}
	if len(old.Serving) == 0 {
		return len(cur.Serving) > 0 // flows from the time without endpoints have no NAT
	}
	for _, e := range old.Serving {
		if !cur.Serves(e.Addr) {
			return true
		}
	}
	return false
}

// stale reports whether a flow leads from a frontend of ours to anything but a
// serving endpoint of it. A flow without NAT does: the frontend had no endpoint,
// or did not exist, when it began.
func (x *index) stale(f flow) bool {
	if p := x.addrs[f.dst]; p != nil {
		return !p.Serves(f.replySrc)
	}
	if p := x.nodePorts[f.dst.Port()]; p != nil && x.isLocal(f.dst.Addr()) {
		return !p.Serves(f.replySrc)
	}
	// Where a frontend is gone, a flow without NAT is no longer our business.
	if len(x.gone) == 0 || f.replySrc == f.dst {
		return false
	}
	nodePort := netip.AddrPortFrom(x.family.Unspecified(), f.dst.Port())
	return x.gone[f.dst] || x.gone[nodePort] && x.isLocal(f.dst.Addr())
}

func (x *index) isLocal(a netip.Addr) bool {
	return slices.ContainsFunc(x.local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// clean makes one pass over the kernel's table and, if it went well, is due no more.
func (x *index) clean(ctx context.Context) Pass {
	start := time.Now()
	pass := Pass{Family: x.family}
	if len(x.addrs)+len(x.nodePorts)+len(x.gone) > 0 {
		pass.Deleted, pass.Err = deleteUDP(ctx, x.family, x.stale)
	}
	if pass.Err == nil {
		clear(x.gone)
		x.due = false
	}
	pass.Took = time.Since(start)
	return pass
}

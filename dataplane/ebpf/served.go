package ebpf

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// Why sockets leave a ServicePort, or frontends of it, to the packet backend.
const (
	leftProtocol = "protocol"       // an association of SCTP has more than one address
	leftSources  = "source_ranges"  // the client's address is not chosen yet
	leftBound    = "bound_address"  // an address of the node itself
	leftFamily   = "address_family" // one that is not programmed
	leftNoRoom   = "no_room"        // in the maps
)

// served returns a ServicePort with just those frontends that sockets serve, and why
// there are not all of them ("": all).
func (b *sockets) served(port *dataplane.ServicePort) (*dataplane.ServicePort, string) {
	switch {
	case !slices.Contains(b.cfg.Families, port.ID.Family):
		return &dataplane.ServicePort{ID: port.ID}, leftFamily
	case port.ID.Protocol != dataplane.TCP && port.ID.Protocol != dataplane.UDP:
		return &dataplane.ServicePort{ID: port.ID}, leftProtocol
	}
	why := ""
	for i := range port.Frontends {
		if w := b.leaves(&port.Frontends[i]); w != "" {
			why = w
		}
	}
	if why == "" {
		return port, ""
	}
	some := *port
	some.Frontends = nil
	for i := range port.Frontends {
		if b.leaves(&port.Frontends[i]) == "" {
			some.Frontends = append(some.Frontends, port.Frontends[i])
		}
	}
	return &some, why
}

// leaves returns why sockets do not serve a frontend. Empty means that they do.
func (b *sockets) leaves(f *dataplane.Frontend) string {
	switch {
	case len(f.Sources) > 0:
		return leftSources
	case f.Kind != dataplane.NodePort && b.held.bound.contains(f.Addr.Addr()):
		return leftBound
	}
	return ""
}

// addKeys adds the frontends of a ServicePort that sockets serve.
func (b *sockets) addKeys(to map[programs.SockFrontendKey]struct{}, port *dataplane.ServicePort) {
	if port == nil {
		return
	}
	served, _ := b.served(port)
	for _, f := range served.Frontends {
		to[programs.ToFrontendKey(f, port.ID.Protocol)] = struct{}{}
	}
}

// changes returns the ServicePorts that differ between two Snapshots, old and new,
// and those that the node's own addresses make differ.
func (b *sockets) changes(prev, want *dataplane.Snapshot) iter.Seq2[*dataplane.ServicePort, *dataplane.ServicePort] {
	return func(yield func(old, cur *dataplane.ServicePort) bool) {
		for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
			if !yield(old, cur) {
				return
			}
		}
		if slices.Equal(prev.Node.Bound, want.Node.Bound) {
			return
		}
		before, after := makeBound(prev.Node.Bound), makeBound(want.Node.Bound)
		for cur := range want.Ports.All() {
			differs := func(f dataplane.Frontend) bool {
				return before.contains(f.Addr.Addr()) != after.contains(f.Addr.Addr())
			}
			if prev.Ports.Get(cur.ID) == cur && slices.ContainsFunc(cur.Frontends, differs) && !yield(cur, cur) {
				return
			}
		}
	}
}

func idOf(old, cur *dataplane.ServicePort) dataplane.PortID {
	if cur != nil {
		return cur.ID
	}
	return old.ID
}

// bound are the addresses of the node itself.
type bound struct {
	single map[netip.Addr]struct{}
	ranges []netip.Prefix
}

func makeBound(prefixes []netip.Prefix) bound {
	b := bound{single: make(map[netip.Addr]struct{}, len(prefixes))}
	for _, p := range prefixes {
		if p.IsSingleIP() {
			b.single[p.Addr()] = struct{}{}
		} else {
			b.ranges = append(b.ranges, p)
		}
	}
	return b
}

func (b bound) contains(a netip.Addr) bool {
	_, ok := b.single[a]
	return ok || slices.ContainsFunc(b.ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

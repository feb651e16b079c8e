package ipvs

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// node holds what plans and rules depend on beside the ServicePorts.
type node struct {
	family    dataplane.Family
	mark      uint32 // of packets to masquerade
	scheduler string // of Services that name none
	pods      dataplane.LocalPods
	ranges    []netip.Prefix // that ClusterIPs come from
	addresses []netip.Addr   // that take NodePorts, loopback apart
	localhost bool           // 127.0.0.0/8 takes NodePorts too
	// taken are addresses that somebody gave to a device of this node: what
	// else is reached there is not ours. They were read back; bound are those that
	// the Snapshot knows of.
	taken map[netip.Addr]bool
	bound []netip.Prefix
}

// nodeFor returns what a Snapshot says of the node for one family. Addresses that
// are taken are those that were read back last.
func (f *familyBackend) nodeFor(s *dataplane.Snapshot) node {
	n := node{family: f.table.Family, mark: 1 << f.backend.cfg.MasqueradeBit, scheduler: f.backend.options.scheduler(), pods: s.Node.LocalPods, taken: f.node.taken}
	for _, p := range s.ServiceCIDRs {
		if dataplane.FamilyOf(p.Addr()) == n.family && p.Bits() > 0 { // nobody drops all that there is
			n.ranges = append(n.ranges, p)
		}
	}
	for _, p := range s.Node.Bound {
		if dataplane.FamilyOf(p.Addr()) == n.family {
			n.bound = append(n.bound, p)
		}
	}
	for _, p := range s.Node.NodePorts {
		switch {
		case dataplane.FamilyOf(p.Addr()) != n.family:
		case p.Addr().IsLoopback():
			// No kernel forwards from ::1.
			n.localhost = n.localhost || f.backend.cfg.LocalhostNodePorts && p.Addr().Is4()
		case p.IsSingleIP():
			n.addresses = append(n.addresses, p.Addr())
		}
	}
	return n
}

// samePlans reports whether plans for one node are those for another.
func (n *node) samePlans(o *node) bool {
	return n.scheduler == o.scheduler && n.localhost == o.localhost && slices.Equal(n.addresses, o.addresses) && maps.Equal(n.taken, o.taken)
}

// rebinds reports whether some Service's address has been bound on this node since
// another node, or is so no longer.
func (n *node) rebinds(o *node, ports dataplane.Ports) bool {
	if slices.Equal(n.bound, o.bound) {
		return false
	}
	for p := range ports.All() {
		for _, f := range p.Frontends {
			if f.Kind != dataplane.NodePort && n.isTaken(f.Addr.Addr()) != o.isTaken(f.Addr.Addr()) {
				return true
			}
		}
	}
	return false
}

// isTaken reports whether an address is somebody else's on this node.
func (n *node) isTaken(a netip.Addr) bool {
	return n.taken[a] || slices.Contains(n.bound, netip.PrefixFrom(a, a.BitLen()))
}

// elements returns those that no ServicePort brings.
func (n *node) elements() []nft.Element {
	out := make([]nft.Element, 0, len(n.addresses))
	for _, a := range n.addresses {
		out = append(out, nft.Element{Family: n.family, Set: setAddresses, Key: nft.AddrBytes(a)})
	}
	return out
}

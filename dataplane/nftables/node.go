package nftables

import (
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// node is what the constant rules depend on.
type node struct {
	family    dataplane.Family
	mark      uint32 // the bit of the packet's mark that means "masquerade"
	pods      dataplane.LocalPods
	ranges    []netip.Prefix // that ClusterIPs come from
	addresses []netip.Addr   // that take NodePorts, loopback apart
	prefixes  []netip.Prefix // the same, whole ranges
	localhost bool           // 127.0.0.0/8 takes NodePorts too
	liberal   bool           // conntrack takes out-of-window packets for valid
}

// nodeFor returns what a Snapshot says of the node for one family.
func (f *familyBackend) nodeFor(s *dataplane.Snapshot) node {
	n := node{family: f.table.Family, mark: f.mark, pods: s.Node.LocalPods, liberal: isLiberal()}
	for _, p := range s.ServiceCIDRs {
		if dataplane.FamilyOf(p.Addr()) == n.family && p.Bits() > 0 { // nobody drops all that there is
			n.ranges = append(n.ranges, p)
		}
	}
	for _, p := range s.Node.NodePorts {
		switch {
		case dataplane.FamilyOf(p.Addr()) != n.family:
		case p.Addr().IsLoopback():
			// No kernel forwards from ::1.
			n.localhost = n.localhost || f.localhost && p.Addr().Is4()
		case p.IsSingleIP():
			n.addresses = append(n.addresses, p.Addr())
		default:
			n.prefixes = append(n.prefixes, p)
		}
	}
	return n
}

// sameRules reports whether the constant rules for one node are those for another.
func (n *node) sameRules(o *node) bool {
	return n.pods.Interface == o.pods.Interface && n.pods.InterfacePrefix == o.pods.InterfacePrefix && slices.Equal(n.pods.CIDRs, o.pods.CIDRs) &&
		slices.Equal(n.ranges, o.ranges) && slices.Equal(n.prefixes, o.prefixes) && n.localhost == o.localhost && n.liberal == o.liberal
}

// elements returns those that no ServicePort brings.
func (n *node) elements() []nft.Element {
	out := make([]nft.Element, 0, len(n.addresses))
	for _, a := range n.addresses {
		out = append(out, nft.Element{Family: n.family, Set: setAddresses, Key: nft.AddrBytes(a)})
	}
	return out
}

// isLiberal reports whether conntrack takes TCP packets outside of the window
// for valid. Then INVALID says too little to drop a packet for (KUBE-PROXY §1.14).
func isLiberal() bool {
	n, err := sysctl.Proc.Int("net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && n != 0
}

package ebpf

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// flags returns those of settings.
func (b *sockets) flags(node *dataplane.Node) programs.SockFlag {
	flags := b.modeFlags
	if node.LocalPods.Detects(dataplane.IPv4) {
		flags |= programs.SockFlagDETECTS_PODS_V4
	}
	if node.LocalPods.Detects(dataplane.IPv6) {
		flags |= programs.SockFlagDETECTS_PODS_V6
	}
	if b.holdsPods() {
		flags |= programs.SockFlagHOLD_PODS
	}
	return flags
}

// holdsPods reports whether the sockets of pods are left to packets, because another
// backend (IPVS) is still ending its connections: it takes what comes from an endpoint
// to a port that it served before for an answer of its own, and gives it the Service's
// address. A socket that was translated as it connected does not know that address.
// Sockets of the node itself are not left: IPVS would refuse them.
func (b *sockets) holdsPods() bool {
	return b.cfg.Draining != nil && b.cfg.Draining()
}

// nodePortAddresses returns the keys of node_addresses. 127.0.0.0/8 stands under
// 127.0.0.0; no kernel forwards from ::1 (KUBE-PROXY §1.10). The addresses of a
// local prefix are left out, for the map holds single ones.
func nodePortAddresses(n *dataplane.Node, localhost bool) []programs.SockAddr {
	var keys []programs.SockAddr
	for _, p := range n.NodePorts {
		if p.Addr().IsLoopback() && (!localhost || !p.Addr().Is4()) {
			continue
		}
		if !p.Addr().IsLoopback() && !p.IsSingleIP() {
			continue
		}
		keys = append(keys, programs.ToAddr(p.Masked().Addr()))
	}
	return keys
}

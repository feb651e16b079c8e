package ebpf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
)

// keySet is a map whose keys alone say something.
type keySet[K comparable] struct {
	kernel *ebpf.Map
	have   map[K]struct{} // nil: unknown
}

// sync makes the map hold just the keys wanted: what comes first, what goes after.
func (s *keySet[K]) sync(want []K) error {
	if err := s.add(want); err != nil {
		return err
	}
	return s.prune(want)
}

// read learns what the map holds, where that is not known.
func (s *keySet[K]) read() error {
	if s.have != nil {
		return nil
	}
	have := map[K]struct{}{}
	if err := dumpEach(s.kernel, func(k K, _ uint8) { have[k] = struct{}{} }); err != nil {
		return err
	}
	s.have = have
	return nil
}

// add makes the map hold the keys wanted.
func (s *keySet[K]) add(want []K) error {
	if err := s.read(); err != nil {
		return err
	}
	for _, k := range want {
		if _, ok := s.have[k]; ok {
			continue
		}
		if err := s.kernel.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("writing the %s map: %w", mapName(s.kernel), err)
		}
		s.have[k] = struct{}{}
	}
	return nil
}

// prune removes all other keys.
func (s *keySet[K]) prune(want []K) error {
	if err := s.read(); err != nil {
		return err
	}
	wanted := make(map[K]struct{}, len(want))
	for _, k := range want {
		wanted[k] = struct{}{}
	}
	for k := range s.have {
		if _, ok := wanted[k]; ok {
			continue
		}
		if err := removeEach(s.kernel, []K{k}); err != nil {
			return err
		}
		delete(s.have, k)
	}
	return nil
}

// nodeState is what the kernel holds of the node.
type nodeState struct {
	addresses     keySet[sockAddr]
	podRanges     keySet[sockRangeKey]
	serviceRanges keySet[sockRangeKey]
	settings      sockSettings

	node  *dataplane.Node // as it is in the kernel; nil: unknown
	cidrs []netip.Prefix
}

// syncNode writes what depends on the node alone, but for ranges of ClusterIPs
// that are new: those whose addresses are none are dropped (see finish).
func (b *backend) syncNode(want *dataplane.Snapshot, unknown bool) error {
	n := &b.node
	if unknown {
		n.addresses.have, n.podRanges.have, n.serviceRanges.have, n.node = nil, nil, nil, nil
		if err := b.maps.settings.Lookup(uint32(0), &n.settings); err != nil {
			return fmt.Errorf("reading the settings map: %w", err)
		}
	}
	if n.node == want.Node && slices.Equal(n.cidrs, want.ServiceCIDRs) {
		return nil
	}
	if err := n.addresses.sync(nodePortAddresses(want.Node, b.cfg.LocalhostNodePorts)); err != nil {
		return err
	}
	if err := n.podRanges.sync(toRanges(want.Node.LocalPods.CIDRs)); err != nil {
		return err
	}
	if err := n.serviceRanges.prune(toRanges(want.ServiceCIDRs)); err != nil {
		return err
	}
	settings := sockSettings{Flags: n.settings.Flags & packetsBegin}
	if want.Node.LocalPods.Detects(dataplane.IPv4) {
		settings.Flags |= detectsPodsV4
	}
	if want.Node.LocalPods.Detects(dataplane.IPv6) {
		settings.Flags |= detectsPodsV6
	}
	if b.holdsPods() {
		settings.Flags |= holdPods
	}
	if err := b.writeSettings(settings); err != nil {
		return err
	}
	n.node, n.cidrs = want.Node, want.ServiceCIDRs
	return nil
}

func (b *backend) writeSettings(s sockSettings) error {
	if s == b.node.settings {
		return nil
	}
	if err := b.maps.settings.Put(uint32(0), s); err != nil {
		return fmt.Errorf("writing the settings map: %w", err)
	}
	b.node.settings = s
	return nil
}

func (b *backend) holdsPods() bool {
	return b.opts.HoldPodSockets != nil && b.opts.HoldPodSockets.Load()
}

// letBegin lets packets begin connections, now that each device has its
// programs. Whatever balanced them until then loses none to a device that had
// not.
func (b *backend) letBegin() error {
	s := b.node.settings
	s.Flags |= packetsBegin
	return b.writeSettings(s)
}

func toRanges(prefixes []netip.Prefix) []sockRangeKey {
	keys := make([]sockRangeKey, len(prefixes))
	for i, p := range prefixes {
		keys[i] = toRange(p)
	}
	return keys
}

// nodePortAddresses are the keys of node_addresses. 127.0.0.0/8 stands under
// 127.0.0.0; no kernel forwards from ::1 (KUBE-PROXY §1.10). The addresses of a
// local prefix are left out, for the map holds single ones.
func nodePortAddresses(n *dataplane.Node, localhost bool) []sockAddr {
	var keys []sockAddr
	for _, p := range n.NodePorts {
		if p.Addr().IsLoopback() && (!localhost || !p.Addr().Is4()) {
			continue
		}
		if !p.Addr().IsLoopback() && !p.IsSingleIP() {
			continue
		}
		keys = append(keys, toAddr(p.Masked().Addr()))
	}
	return keys
}

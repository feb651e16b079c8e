package ebpf

import (
	"errors"
	"fmt"
	"path/filepath"

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
	addresses keySet[sockAddr]
	settings  sockSettings
	node      *dataplane.Node // as it is in the kernel; nil: unknown
}

// syncNode writes what depends on the node alone.
func (b *sockets) syncNode(want *dataplane.Snapshot, unknown bool) error {
	n := &b.node
	if unknown {
		n.addresses.have, n.node = nil, nil
		if err := b.maps.settings.Lookup(uint32(0), &n.settings); err != nil {
			return fmt.Errorf("reading the settings map: %w", err)
		}
	}
	if n.node == want.Node {
		return nil
	}
	if err := n.addresses.sync(nodePortAddresses(want.Node, b.cfg.LocalhostNodePorts)); err != nil {
		return err
	}
	if err := b.writeSettings(b.flags(want.Node)); err != nil {
		return err
	}
	n.node = want.Node
	return nil
}

// flags are those of settings.
func (b *sockets) flags(node *dataplane.Node) uint32 {
	flags := b.modeFlags
	if node.LocalPods.Detects(dataplane.IPv4) {
		flags |= detectsPodsV4
	}
	if node.LocalPods.Detects(dataplane.IPv6) {
		flags |= detectsPodsV6
	}
	if b.holdsPods() {
		flags |= holdPods
	}
	return flags
}

func (b *sockets) writeSettings(flags uint32) error {
	s := sockSettings{Flags: flags}
	if s == b.node.settings {
		return nil
	}
	if err := b.maps.settings.Put(uint32(0), s); err != nil {
		return fmt.Errorf("writing the settings map: %w", err)
	}
	b.node.settings = s
	return nil
}

// holdsPods reports whether the sockets of pods are left to packets, because another
// backend (IPVS) is still ending its connections: it takes what comes from an endpoint
// to a port that it served before for an answer of its own, and gives it the Service's
// address. A socket that was translated as it connected does not know that address.
// Sockets of the node itself are not left: IPVS would refuse them.
func (b *sockets) holdsPods() bool {
	return b.cfg.Draining != nil && b.cfg.Draining()
}

// stepAside leaves all sockets to packets until the next Sync that succeeds: the
// maps may be out of date. Programs of an earlier agent that still run on maps of
// their own find no frontend there any more.
func (b *sockets) stepAside() error {
	b.records, b.node.node = nil, nil
	errs := []error{b.writeSettings(b.node.settings.Flags | standAside)}
	if b.attached {
		return errs[0]
	}
	if m := b.toAdopt[sockMapFrontends]; m != nil {
		errs = append(errs, empty(m))
	}
	for _, dir := range b.older.schemas {
		errs = append(errs, emptyPinned(filepath.Join(dir, "maps", sockMapFrontends)))
	}
	return errors.Join(errs...)
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

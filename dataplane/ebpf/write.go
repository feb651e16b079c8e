package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// tables are the maps that Sync writes.
type tables struct {
	frontends, services, slots, addresses, settings *ebpf.Map
}

// flushAt is how many slots and frontends are gathered before they are written.
const flushAt = 8192

// full reports whether it is time to flush.
func (w *writes) full() bool { return len(w.slots)+len(w.frontends) >= flushAt }

// flush writes all but what is for the end of the Sync: new slots, then the master
// entries that turn to them, then frontends; the slots that nobody uses any more last.
func (t *tables) flush(w *writes) error {
	if err := programs.Put(t.slots, w.slotKeys, w.slots); err != nil {
		return err
	}
	if err := programs.Put(t.services, ids(w.masters), w.masters); err != nil {
		return err
	}
	if err := programs.Put(t.frontends, w.frontendKeys, w.frontends); err != nil {
		return err
	}
	if err := programs.Remove(t.slots, w.goneSlots); err != nil {
		return err
	}
	w.slotKeys, w.slots, w.masters = w.slotKeys[:0], w.slots[:0], w.masters[:0]
	w.frontendKeys, w.frontends, w.goneSlots = w.frontendKeys[:0], w.frontends[:0], w.goneSlots[:0]
	return nil
}

// settle writes the rest, then deletes what nobody uses: frontends first, so that
// each leads to a Service as long as it exists.
func (t *tables) settle(w *writes) error {
	if err := t.flush(w); err != nil {
		return err
	}
	gone := slices.DeleteFunc(w.goneFrontends, func(k programs.SockFrontendKey) bool {
		_, ok := w.claimed[k]
		return ok
	})
	if err := programs.Remove(t.frontends, gone); err != nil {
		return err
	}
	var masters []uint32
	var slots []programs.SockSlotKey
	for _, p := range w.removed {
		masters = append(masters, p.master.Id)
		slots = appendSlotKeys(slots, p.master.Id, p.master.Generation, 0, p.slots)
	}
	if err := programs.Remove(t.services, masters); err != nil {
		return err
	}
	if err := programs.Remove(t.slots, slots); err != nil {
		return err
	}
	if err := programs.Put(t.services, ids(w.settled), w.settled); err != nil {
		return err
	}
	return programs.Remove(t.slots, w.settledSlots)
}

func ids(services []programs.SockService) []uint32 {
	out := make([]uint32, len(services))
	for i, s := range services {
		out[i] = s.Id
	}
	return out
}

// keySet is a map whose keys alone say something.
type keySet[K comparable] struct {
	kernel *ebpf.Map
	held   map[K]struct{} // nil: unknown
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
	if s.held != nil {
		return nil
	}
	have := map[K]struct{}{}
	if err := programs.DumpEach(s.kernel, func(k K, _ uint8) { have[k] = struct{}{} }); err != nil {
		return err
	}
	s.held = have
	return nil
}

// add makes the map hold the keys wanted.
func (s *keySet[K]) add(want []K) error {
	if err := s.read(); err != nil {
		return err
	}
	for _, k := range want {
		if _, ok := s.held[k]; ok {
			continue
		}
		if err := s.kernel.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("writing the %s map: %w", programs.MapName(s.kernel), err)
		}
		s.held[k] = struct{}{}
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
	for k := range s.held {
		if _, ok := wanted[k]; ok {
			continue
		}
		if err := programs.RemoveEach(s.kernel, []K{k}); err != nil {
			return err
		}
		delete(s.held, k)
	}
	return nil
}

// nodeState is what the kernel holds of the node.
type nodeState struct {
	addresses keySet[programs.SockAddr]
	settings  programs.SockSettings
	node      *dataplane.Node // as it is in the kernel; nil: unknown
}

// writeNode writes what depends on the node alone.
func (b *sockets) writeNode(want *dataplane.Snapshot, unknown bool) error {
	n := &b.held.node
	if unknown {
		n.addresses.held, n.node = nil, nil
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

func (b *sockets) writeSettings(flags programs.SockFlag) error {
	s := programs.SockSettings{Flags: flags}
	if s == b.held.node.settings {
		return nil
	}
	if err := b.maps.settings.Put(uint32(0), s); err != nil {
		return fmt.Errorf("writing the settings map: %w", err)
	}
	b.held.node.settings = s
	return nil
}

// stepAside leaves all sockets to packets until the next Sync that succeeds: the
// maps may be out of date. Programs of an earlier agent that still run on maps of
// their own find no frontend there any more.
func (b *sockets) stepAside() error {
	b.held.ports, b.held.node.node = nil, nil
	return errors.Join(b.writeSettings(b.held.node.settings.Flags|programs.SockFlagSTAND_ASIDE), b.programs.EmptyOthers())
}

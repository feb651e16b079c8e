package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
)

// flushAt is how many slots a batch gathers before it is written.
const flushAt = 8192

// batch gathers the changes of several ServicePorts and writes them map by map,
// in an order in which each ServicePort is whole at any moment: its new slots,
// then its master entry, then its frontends; what nobody uses any more last.
type batch struct {
	maps *tables

	slotKeys     []sockSlotKey
	slots        []sockSlot
	masters      []sockService // before the frontends
	frontendKeys []sockFrontendKey
	frontends    []sockFrontend
	goneSlots    []sockSlotKey

	// At the end of the Sync, when the frontends that went are gone too:
	settled      []sockService // without the old pools
	settledSlots []sockSlotKey
}

// change adds what makes a ServicePort of old (nil: nothing) into next.
func (b *batch) change(old, next *record) {
	if old == nil || old.damaged || next.master.Generation != old.master.Generation {
		b.newGeneration(old, next)
	} else if next.master != old.master {
		b.masters = append(b.masters, next.master)
	}
	for _, e := range next.frontends {
		if have := old.find(e.key); have == nil || have.value != e.value {
			b.frontendKeys = append(b.frontendKeys, e.key)
			b.frontends = append(b.frontends, e.value)
		}
	}
}

// newGeneration adds all slots and the master entry of next. Where frontends
// turn to other indexes, the old pools are in the new generation too until they
// have turned.
func (b *batch) newGeneration(old, next *record) {
	id, generation := next.master.Id, next.master.Generation
	b.addSlots(&next.master, &next.pools)
	if old == nil {
		b.masters = append(b.masters, next.master)
		return
	}
	between := next.master
	if left, some := onlyIn(&old.pools, &next.pools); some {
		end := layOut(&between, &left, next.slots)
		b.addSlots(&between, &left)
		b.settled = append(b.settled, next.master)
		b.settledSlots = appendSlotKeys(b.settledSlots, id, generation, next.slots, end)
	}
	b.masters = append(b.masters, sealed(between))
	b.goneSlots = appendSlotKeys(b.goneSlots, id, old.master.Generation, 0, old.slots)
}

// addSlots adds the slots of pools, where the master says that they are.
func (b *batch) addSlots(master *sockService, pools *[maxPools]*dataplane.Pool) {
	for i, p := range pools {
		if p == nil || slices.ContainsFunc(pools[:i], func(q *dataplane.Pool) bool { return q != nil && samePool(p, q) }) {
			continue
		}
		for n, e := range p.Endpoints {
			key := sockSlotKey{Service: master.Id, Generation: master.Generation, Slot: master.Pools[i].First + uint32(n)}
			b.slotKeys = append(b.slotKeys, key)
			b.slots = append(b.slots, toSlot(key, e))
		}
	}
}

func appendSlotKeys(keys []sockSlotKey, id, generation, first, end uint32) []sockSlotKey {
	for slot := first; slot < end; slot++ {
		keys = append(keys, sockSlotKey{Service: id, Generation: generation, Slot: slot})
	}
	return keys
}

// full reports whether it is time to flush.
func (b *batch) full() bool { return len(b.slots)+len(b.frontends) >= flushAt }

// flush writes all but what is for the end of the Sync.
func (b *batch) flush() error {
	if err := put(b.maps.slots, b.slotKeys, b.slots); err != nil {
		return err
	}
	if err := put(b.maps.services, ids(b.masters), b.masters); err != nil {
		return err
	}
	if err := put(b.maps.frontends, b.frontendKeys, b.frontends); err != nil {
		return err
	}
	if err := remove(b.maps.slots, b.goneSlots); err != nil {
		return err
	}
	b.slotKeys, b.slots, b.masters = b.slotKeys[:0], b.slots[:0], b.masters[:0]
	b.frontendKeys, b.frontends, b.goneSlots = b.frontendKeys[:0], b.frontends[:0], b.goneSlots[:0]
	return nil
}

// settle writes what is for the end of the Sync.
func (b *batch) settle() error {
	if err := put(b.maps.services, ids(b.settled), b.settled); err != nil {
		return err
	}
	return remove(b.maps.slots, b.settledSlots)
}

func ids(services []sockService) []uint32 {
	out := make([]uint32, len(services))
	for i, s := range services {
		out[i] = s.Id
	}
	return out
}

// put writes elements in one system call.
func put[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("writing %d elements of the %s map: %w", len(keys), mapName(m), err)
	}
	return nil
}

// remove deletes elements in one system call, or in one more for each that is
// not there.
func remove[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			return fmt.Errorf("deleting %d elements of the %s map: %w", len(keys), mapName(m), err)
		}
		keys = keys[n+1:]
	}
	return nil
}

// removeEach is remove for maps without batches.
func removeEach[K any](m *ebpf.Map, keys []K) error {
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("deleting an element of the %s map: %w", mapName(m), err)
		}
	}
	return nil
}

// dump reads a whole map in batches.
func dump[K, V any](m *ebpf.Map, each func(K, V)) error {
	const chunk = 4096
	keys, values := make([]K, chunk), make([]V, chunk)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			each(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the %s map: %w", mapName(m), err)
		}
	}
}

// dumpEach is dump for maps without batches.
func dumpEach[K, V any](m *ebpf.Map, each func(K, V)) error {
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		each(key, value)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("reading the %s map: %w", mapName(m), err)
	}
	return nil
}

func mapName(m *ebpf.Map) string {
	info, err := m.Info()
	if err != nil {
		return m.String()
	}
	return info.Name
}

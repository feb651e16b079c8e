package ebpf

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// writes is what gets the kernel from what it holds to what is wanted. It is written in
// an order in which each ServicePort is whole at any moment (see write.go).
type writes struct {
	slotKeys     []programs.SockSlotKey
	slots        []programs.SockSlot
	masters      []programs.SockService // before the frontends
	frontendKeys []programs.SockFrontendKey
	frontends    []programs.SockFrontend
	goneSlots    []programs.SockSlotKey

	// For the end of the Sync, when all else is written:
	claimed       map[programs.SockFrontendKey]struct{} // frontends that some ServicePort has
	goneFrontends []programs.SockFrontendKey            // they go unless they are claimed
	removed       []*plan
	settled       []programs.SockService // without the old pools
	settledSlots  []programs.SockSlotKey
}

// change adds what makes a ServicePort of old (nil: nothing) into next.
func (w *writes) change(old, next *plan) {
	if old == nil || old.damaged || next.master.Generation != old.master.Generation {
		w.newGeneration(old, next)
	} else if next.master != old.master {
		w.masters = append(w.masters, next.master)
	}
	for _, e := range next.frontends {
		if have := old.find(e.key); have == nil || have.value != e.value {
			w.frontendKeys = append(w.frontendKeys, e.key)
			w.frontends = append(w.frontends, e.value)
		}
	}
	w.keep(next)
	if old == nil {
		return
	}
	for _, e := range old.frontends {
		if next.find(e.key) == nil {
			w.goneFrontends = append(w.goneFrontends, e.key)
		}
	}
}

// keep leaves the frontends of a ServicePort in the kernel.
func (w *writes) keep(p *plan) {
	if w.claimed == nil {
		w.claimed = map[programs.SockFrontendKey]struct{}{}
	}
	for _, e := range p.frontends {
		w.claimed[e.key] = struct{}{}
	}
}

// remove adds what takes a ServicePort out of the kernel.
func (w *writes) remove(p *plan) {
	w.removed = append(w.removed, p)
	for _, e := range p.frontends {
		w.goneFrontends = append(w.goneFrontends, e.key)
	}
}

// newGeneration adds all slots and the master entry of next. Where frontends
// turn to other indexes, the old pools are in the new generation too until they
// have turned.
func (w *writes) newGeneration(old, next *plan) {
	id, generation := next.master.Id, next.master.Generation
	w.addSlots(&next.master, &next.pools)
	if old == nil {
		w.masters = append(w.masters, next.master)
		return
	}
	between := next.master
	if left, some := onlyIn(&old.pools, &next.pools); some {
		end := layOut(&between, &left, next.slots)
		w.addSlots(&between, &left)
		w.settled = append(w.settled, next.master)
		w.settledSlots = appendSlotKeys(w.settledSlots, id, generation, next.slots, end)
	}
	w.masters = append(w.masters, programs.Sealed(between))
	w.goneSlots = appendSlotKeys(w.goneSlots, id, old.master.Generation, 0, old.slots)
}

// addSlots adds the slots of pools, where the master says that they are.
func (w *writes) addSlots(master *programs.SockService, pools *[programs.MaxPools]*dataplane.Pool) {
	for i, p := range pools {
		if p == nil || slices.ContainsFunc(pools[:i], func(q *dataplane.Pool) bool { return q != nil && samePool(p, q) }) {
			continue
		}
		for n, e := range p.Endpoints {
			key := programs.SockSlotKey{Service: master.Id, Generation: master.Generation, Slot: master.Pools[i].First + uint32(n)}
			w.slotKeys = append(w.slotKeys, key)
			w.slots = append(w.slots, programs.ToSlot(key, e))
		}
	}
}

func appendSlotKeys(keys []programs.SockSlotKey, id, generation, first, end uint32) []programs.SockSlotKey {
	for slot := first; slot < end; slot++ {
		keys = append(keys, programs.SockSlotKey{Service: id, Generation: generation, Slot: slot})
	}
	return keys
}

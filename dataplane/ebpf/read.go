package ebpf

import (
	"cmp"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// reading is what the kernel's maps hold.
type reading struct {
	plans  map[uint32]*plan // by id; those that no ServicePort has claimed yet
	owner  map[programs.SockFrontendKey]uint32
	nextID uint32

	// What belongs to no Service's master entry:
	strayedFrontends []programs.SockFrontendKey
	strayedSlots     []programs.SockSlotKey
	// damagedSlots belong to damaged master entries, which may still use them.
	damagedSlots []programs.SockSlotKey
}

// firstID is the first id of a Service port: what an older schema noted of
// sockets has ids of its own.
const firstID = 2 << 28

// slotElement is an element of the slots map.
type slotElement struct {
	key   programs.SockSlotKey
	value programs.SockSlot
}

// read reads all maps of Services.
func (t *tables) read() (*reading, error) {
	h := &reading{plans: map[uint32]*plan{}, owner: map[programs.SockFrontendKey]uint32{}, nextID: firstID}
	err := programs.Dump(t.services, func(id uint32, s programs.SockService) {
		damaged := s.Id != id
		s.Id = id
		h.plans[id] = &plan{master: s, damaged: damaged}
		h.nextID = max(h.nextID, id+1)
	})
	if err != nil {
		return nil, err
	}
	if err := h.readFrontends(t); err != nil {
		return nil, err
	}
	var slots []slotElement
	err = programs.Dump(t.slots, func(k programs.SockSlotKey, v programs.SockSlot) {
		slots = append(slots, slotElement{k, v})
		h.nextID = max(h.nextID, k.Service+1)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(slots, func(a, b slotElement) int { return compareSlots(a.key, b.key) })
	h.assignSlots(slots)
	return h, nil
}

func (h *reading) readFrontends(maps *tables) error {
	return programs.Dump(maps.frontends, func(k programs.SockFrontendKey, v programs.SockFrontend) {
		p := h.plans[v.Service]
		if p == nil {
			h.strayedFrontends = append(h.strayedFrontends, k)
			return
		}
		p.frontends = append(p.frontends, element{k, v})
		h.owner[k] = v.Service
	})
}

// assignSlots gives each plan the slots of its generation; slots are sorted.
func (h *reading) assignSlots(slots []slotElement) {
	runs := map[uint32][]slotElement{} // of the master's generation
	for len(slots) > 0 {
		first := slots[0].key
		n := slices.IndexFunc(slots, func(s slotElement) bool {
			return s.key.Service != first.Service || s.key.Generation != first.Generation
		})
		if n < 0 {
			n = len(slots)
		}
		p := h.plans[first.Service]
		if p != nil && p.master.Generation == first.Generation {
			runs[first.Service] = slots[:n]
		} else {
			for _, s := range slots[:n] {
				h.strayedSlots = append(h.strayedSlots, s.key)
			}
		}
		slots = slots[n:]
	}
	for id, p := range h.plans {
		strayed := p.fill(runs[id])
		if p.damaged {
			h.damagedSlots = append(h.damagedSlots, strayed...)
		} else {
			h.strayedSlots = append(h.strayedSlots, strayed...)
		}
	}
}

// fill reads the pools of a master entry out of its slots, and returns those
// that are in none.
func (p *plan) fill(slots []slotElement) []programs.SockSlotKey {
	for i, run := range p.master.Pools {
		end := uint64(run.First) + uint64(run.Count)
		if end > uint64(len(slots)) {
			p.damaged = true
			continue
		}
		used := run.Count > 0 || slices.ContainsFunc(p.frontends, func(e element) bool {
			return int(e.value.Pool) == i || int(e.value.Inside) == i
		})
		if !used {
			continue
		}
		pool := &dataplane.Pool{}
		for n, s := range slots[run.First:end] {
			e := programs.FromSlot(s.value)
			if s.key.Slot != run.First+uint32(n) || s.value != programs.ToSlot(s.key, e) {
				p.damaged = true
			}
			pool.Endpoints = append(pool.Endpoints, e)
		}
		p.pools[i] = pool
		p.slots = max(p.slots, uint32(end))
	}
	if p.damaged {
		p.slots = 0
	}
	var strayed []programs.SockSlotKey
	for _, s := range slots {
		if s.key.Slot >= p.slots {
			strayed = append(strayed, s.key)
		}
	}
	return strayed
}

// claim takes the plan that a ServicePort had: the one that most of its
// frontends point to.
func (h *reading) claim(port *dataplane.ServicePort) *plan {
	votes := map[uint32]int{}
	for _, f := range port.Frontends {
		if id, ok := h.owner[programs.ToFrontendKey(f, port.ID.Protocol)]; ok && h.plans[id] != nil {
			votes[id]++
		}
	}
	best := uint32(0)
	for id, n := range votes {
		if best == 0 || n > votes[best] || n == votes[best] && id < best {
			best = id
		}
	}
	p := h.plans[best]
	delete(h.plans, best)
	return p
}

// compareSlots orders slots by service, generation, slot.
func compareSlots(a, b programs.SockSlotKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Slot, b.Slot))
}

package ebpf

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// held is what the kernel's maps hold.
type held struct {
	records map[uint32]*record // by id; those that no ServicePort has claimed yet
	owner   map[sockFrontendKey]uint32
	nextID  uint32

	// What belongs to no Service's master entry:
	strayedFrontends []sockFrontendKey
	strayedSlots     []sockSlotKey
	// damagedSlots belong to damaged master entries, which may still use them.
	damagedSlots []sockSlotKey
}

// firstID is the first id of a Service port: what an older schema noted of
// sockets has ids of its own.
const firstID = 2 << 28

// slotEntry is an element of the slots map.
type slotEntry struct {
	key   sockSlotKey
	value sockSlot
}

// readBack reads all maps of Services.
func (b *sockets) readBack() (*held, error) {
	h := &held{records: map[uint32]*record{}, owner: map[sockFrontendKey]uint32{}, nextID: firstID}
	err := dump(b.maps.services, func(id uint32, s sockService) {
		damaged := s.Id != id
		s.Id = id
		h.records[id] = &record{master: s, damaged: damaged}
		h.nextID = max(h.nextID, id+1)
	})
	if err != nil {
		return nil, err
	}
	if err := h.readFrontends(b.maps); err != nil {
		return nil, err
	}
	var slots []slotEntry
	err = dump(b.maps.slots, func(k sockSlotKey, v sockSlot) {
		slots = append(slots, slotEntry{k, v})
		h.nextID = max(h.nextID, k.Service+1)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(slots, func(a, b slotEntry) int { return compareSlots(a.key, b.key) })
	h.assignSlots(slots)
	return h, nil
}

func (h *held) readFrontends(maps *tables) error {
	return dump(maps.frontends, func(k sockFrontendKey, v sockFrontend) {
		r := h.records[v.Service]
		if r == nil {
			h.strayedFrontends = append(h.strayedFrontends, k)
			return
		}
		r.frontends = append(r.frontends, entry{k, v})
		h.owner[k] = v.Service
	})
}

// assignSlots gives each record the slots of its generation; slots are sorted.
func (h *held) assignSlots(slots []slotEntry) {
	runs := map[uint32][]slotEntry{} // of the master's generation
	for len(slots) > 0 {
		first := slots[0].key
		n := slices.IndexFunc(slots, func(s slotEntry) bool {
			return s.key.Service != first.Service || s.key.Generation != first.Generation
		})
		if n < 0 {
			n = len(slots)
		}
		r := h.records[first.Service]
		if r != nil && r.master.Generation == first.Generation {
			runs[first.Service] = slots[:n]
		} else {
			for _, s := range slots[:n] {
				h.strayedSlots = append(h.strayedSlots, s.key)
			}
		}
		slots = slots[n:]
	}
	for id, r := range h.records {
		strayed := r.fill(runs[id])
		if r.damaged {
			h.damagedSlots = append(h.damagedSlots, strayed...)
		} else {
			h.strayedSlots = append(h.strayedSlots, strayed...)
		}
	}
}

// fill reads the pools of a master entry out of its slots, and gives those that
// are in none.
func (r *record) fill(slots []slotEntry) []sockSlotKey {
	for i, p := range r.master.Pools {
		end := uint64(p.First) + uint64(p.Count)
		if end > uint64(len(slots)) {
			r.damaged = true
			continue
		}
		used := p.Count > 0 || slices.ContainsFunc(r.frontends, func(e entry) bool {
			return int(e.value.Pool) == i || int(e.value.Inside) == i
		})
		if !used {
			continue
		}
		pool := &dataplane.Pool{}
		for n, s := range slots[p.First:end] {
			e := fromSlot(s.value)
			if s.key.Slot != p.First+uint32(n) || s.value != toSlot(s.key, e) {
				r.damaged = true
			}
			pool.Endpoints = append(pool.Endpoints, e)
		}
		r.pools[i] = pool
		r.slots = max(r.slots, uint32(end))
	}
	if r.damaged {
		r.slots = 0
	}
	var strayed []sockSlotKey
	for _, s := range slots {
		if s.key.Slot >= r.slots {
			strayed = append(strayed, s.key)
		}
	}
	return strayed
}

// claim takes the record that a ServicePort had: the one that most of its
// frontends point to.
func (h *held) claim(port *dataplane.ServicePort) *record {
	votes := map[uint32]int{}
	for _, f := range port.Frontends {
		if id, ok := h.owner[toFrontendKey(f, port.ID.Protocol)]; ok && h.records[id] != nil {
			votes[id]++
		}
	}
	best := uint32(0)
	for id, n := range votes {
		if best == 0 || n > votes[best] || n == votes[best] && id < best {
			best = id
		}
	}
	r := h.records[best]
	delete(h.records, best)
	return r
}

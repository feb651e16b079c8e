package ebpf

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
)

// session is one Sync of the socket maps. Its two halves are before and after
// the packet backend's Sync.
type session struct {
	*sockets
	prev, want *dataplane.Snapshot
	unknown    bool // the maps were read back
	batch      batch
	claimed    map[sockFrontendKey]struct{} // frontends that a ServicePort of want has
	gone       []sockFrontendKey            // frontends that one of prev had
	removed    []*record
	lost       []lostEndpoint
	back       []terminate.Endpoint
}

// begin stops translating to frontends that want does not have, or that sockets
// cannot serve any more. The packet backend still serves them.
func (b *sockets) begin(prev, want *dataplane.Snapshot) (*session, error) {
	s := &session{sockets: b, prev: prev, want: want, batch: batch{maps: b.maps}, claimed: map[sockFrontendKey]struct{}{}}
	s.unknown = prev == nil || b.records == nil
	if s.unknown || !slices.Equal(prev.Node.Bound, want.Node.Bound) {
		b.bound = makeBound(want.Node.Bound)
	}
	if s.unknown {
		err := s.readHeld()
		if b.finished != nil && err == nil { // no session since has ended a socket
			s.lost, s.back = b.lostEndpoints(b.finished, want)
		}
		return s, err
	}
	b.countUsers(prev, want)
	s.lost, s.back = b.lostEndpoints(prev, want)
	wanted := map[sockFrontendKey]struct{}{}
	for _, cur := range b.changes(prev, want) {
		s.addKeys(wanted, cur)
	}
	var gone []sockFrontendKey
	for old, cur := range b.changes(prev, want) {
		id := idOf(old, cur)
		if cur == nil {
			b.setAside(id, "")
		}
		r := b.records[id]
		if r == nil {
			continue
		}
		less := r.only(wanted)
		for _, e := range r.frontends {
			if less.find(e.key) == nil {
				gone = append(gone, e.key)
			}
		}
		if b.account(r, -1); cur == nil {
			delete(b.records, id)
			s.removed, s.gone = append(s.removed, less), append(s.gone, keysOf(less)...)
			continue
		}
		b.records[id] = less
		b.account(less, 1)
	}
	return s, remove(b.maps.frontends, gone)
}

func idOf(old, cur *dataplane.ServicePort) dataplane.PortID {
	if cur != nil {
		return cur.ID
	}
	return old.ID
}

// addKeys adds the frontends of a ServicePort that sockets serve.
func (b *sockets) addKeys(to map[sockFrontendKey]struct{}, port *dataplane.ServicePort) {
	if port == nil {
		return
	}
	served, _ := b.served(port)
	for _, f := range served.Frontends {
		to[toFrontendKey(f, port.ID.Protocol)] = struct{}{}
	}
}

// only is the record without the frontends that are not wanted.
func (r *record) only(wanted map[sockFrontendKey]struct{}) *record {
	less := *r
	less.frontends = slices.DeleteFunc(slices.Clone(r.frontends), func(e entry) bool {
		_, ok := wanted[e.key]
		return !ok
	})
	return &less
}

// readHeld reads the kernel back, finds the record of each ServicePort and
// removes the frontends that nobody wants.
func (s *session) readHeld() error {
	b, want := s.sockets, s.want
	held, err := b.readBack()
	if err != nil {
		return err
	}
	if err := remove(s.maps.slots, held.strayedSlots); err != nil {
		return err
	}
	b.records, b.used, b.nextID = make(map[dataplane.PortID]*record, want.Ports.Len()), usage{}, held.nextID
	b.aside, b.asides = map[dataplane.PortID]string{}, map[string]int{}
	wanted := map[sockFrontendKey]struct{}{}
	for port := range want.Ports.All() {
		s.addKeys(wanted, port)
		if r := held.claim(port); r != nil {
			b.records[port.ID] = r
		}
	}
	gone := held.strayedFrontends
	for id, r := range b.records {
		less := r.only(wanted)
		for _, e := range r.frontends {
			if less.find(e.key) == nil {
				gone = append(gone, e.key)
			}
		}
		b.records[id] = less
		b.account(less, 1)
	}
	for _, r := range held.records { // those that nobody claimed
		less := r.only(wanted)
		s.removed, s.gone = append(s.removed, less), append(s.gone, keysOf(less)...)
		for _, e := range r.frontends {
			if less.find(e.key) == nil {
				gone = append(gone, e.key)
			}
		}
	}
	s.batch.settledSlots = append(s.batch.settledSlots, held.damagedSlots...)
	return remove(s.maps.frontends, gone)
}

func keysOf(r *record) []sockFrontendKey {
	keys := make([]sockFrontendKey, len(r.frontends))
	for i, e := range r.frontends {
		keys[i] = e.key
	}
	return keys
}

// finish makes the maps hold what is wanted, less the ServicePorts that the
// packet backend refused: those stay as they were. It comes after that
// backend's Sync, which serves all that sockets do not.
func (s *session) finish(refused []dataplane.PortError) error {
	b := s.sockets
	if err := b.syncNode(s.want, s.unknown); err != nil {
		return err
	}
	stays := map[dataplane.PortID]bool{}
	for _, e := range refused {
		stays[e.ID] = true
	}
	if s.unknown {
		b.ender.users.start(s.want.Ports)
	}
	for port := range s.changed() {
		var err error
		switch {
		case !stays[port.ID]:
			err = s.put(port)
		case s.prev == nil:
			s.keep(port.ID)
		case s.prev.Ports.Get(port.ID) != nil:
			err = s.put(s.prev.Ports.Get(port.ID))
		}
		if err != nil {
			return err
		}
	}
	if err := s.settle(); err != nil {
		return err
	}
	if err := b.attach(s.unknown); err != nil {
		return err
	}
	b.endSockets(s.prev, s.want, s.lost, s.back, refused)
	b.finished = s.want
	b.tell()
	return nil
}

// changed are the ServicePorts to write.
func (s *session) changed() iter.Seq[*dataplane.ServicePort] {
	if s.unknown {
		return s.want.Ports.All()
	}
	return func(yield func(*dataplane.ServicePort) bool) {
		for _, cur := range s.changes(s.prev, s.want) {
			if cur != nil && !yield(cur) {
				return
			}
		}
	}
}

// keep leaves a ServicePort as the maps have it.
func (s *session) keep(id dataplane.PortID) {
	if r := s.records[id]; r != nil {
		for _, e := range r.frontends {
			s.claimed[e.key] = struct{}{}
		}
	}
}

// put makes the maps hold a ServicePort as it is wanted, or leaves it to the
// packet backend.
func (s *session) put(port *dataplane.ServicePort) error {
	old := s.records[port.ID]
	served, why := s.served(port)
	if len(served.Frontends) == 0 {
		s.leave(port.ID, old, why)
		return nil
	}
	id := s.nextID
	if old != nil {
		id = old.master.Id
	}
	next, err := makeRecord(old, served, id)
	if err == nil {
		err = s.fits(old, next)
	}
	if err != nil {
		s.cfg.Log.Warn("sockets leave a Service port to packets", "port", port.ID, "backend", s.base, "reason", err)
		s.leave(port.ID, old, leftNoRoom)
		return nil
	}
	if old == nil {
		s.nextID++
	}
	s.setAside(port.ID, why)
	s.batch.change(old, next)
	s.records[port.ID] = next
	for _, e := range next.frontends {
		s.claimed[e.key] = struct{}{}
	}
	if old != nil {
		s.account(old, -1)
		for _, e := range old.frontends {
			if next.find(e.key) == nil {
				s.gone = append(s.gone, e.key)
			}
		}
	}
	s.account(next, 1)
	if s.batch.full() {
		return s.batch.flush()
	}
	return nil
}

// leave takes a ServicePort out of the maps: the packet backend serves it.
func (s *session) leave(id dataplane.PortID, old *record, why string) {
	s.setAside(id, why) // "": it has no frontend
	if old == nil {
		return
	}
	delete(s.records, id)
	s.account(old, -1)
	s.removed, s.gone = append(s.removed, old), append(s.gone, keysOf(old)...)
}

// settle writes the rest, then deletes what nobody uses: frontends first, so
// that each leads to a Service as long as it is there.
func (s *session) settle() error {
	if err := s.batch.flush(); err != nil {
		return err
	}
	gone := slices.DeleteFunc(s.gone, func(k sockFrontendKey) bool {
		_, ok := s.claimed[k]
		return ok
	})
	if err := remove(s.maps.frontends, gone); err != nil {
		return err
	}
	var masters []uint32
	var slots []sockSlotKey
	for _, r := range s.removed {
		masters = append(masters, r.master.Id)
		slots = appendSlotKeys(slots, r.master.Id, r.master.Generation, 0, r.slots)
	}
	if err := remove(s.maps.services, masters); err != nil {
		return err
	}
	if err := remove(s.maps.slots, slots); err != nil {
		return err
	}
	return s.batch.settle()
}

// usage is how full the maps are, as the flags count it.
type usage struct {
	frontends, services, slots int
}

// account adds a record to the usage (n 1), or takes it off (n -1).
func (b *sockets) account(r *record, n int) {
	b.used.frontends += n * len(r.frontends)
	b.used.services += n
	b.used.slots += n * int(r.slots)
}

// fits reports whether there is room for next in place of old. The kernel's
// maps are larger than what is counted here (see setSizes), so that old and new
// can stand side by side for a moment.
func (b *sockets) fits(old, next *record) error {
	var have record
	n := 1
	if old != nil {
		have, n = *old, 0
	}
	for _, m := range []struct {
		name, flag      string
		used, grow, max int
	}{
		{"frontends", "--ebpf-max-frontends", b.used.frontends, len(next.frontends) - len(have.frontends), b.opts.MaxFrontends},
		{"services", "--ebpf-max-frontends", b.used.services, n, b.opts.MaxFrontends},
		{"slots", "--ebpf-max-endpoints", b.used.slots, int(next.slots) - int(have.slots), b.opts.MaxEndpoints},
	} {
		if m.grow > 0 && m.used+m.grow > m.max {
			return fmt.Errorf("the %s map is full: it holds %d of %d and %d more are wanted; raise %s", m.name, m.used, m.max, m.grow, m.flag)
		}
	}
	return nil
}

// compareSlots orders slots by service, generation, slot.
func compareSlots(a, b sockSlotKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Slot, b.Slot))
}

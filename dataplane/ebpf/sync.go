package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
)

// session is one Sync.
type session struct {
	*backend
	batch   batch
	claimed map[sockFrontendKey]struct{} // frontends that a ServicePort of want has
	gone    []sockFrontendKey            // frontends that one of prev had
	removed []*record
	failed  []dataplane.PortError
}

// Sync implements dataplane.Backend.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := b.sync(ctx, prev, want)
	var partial *dataplane.PartialError
	if err != nil && !errors.As(err, &partial) {
		b.records = nil // unknown
		return err
	}
	return err
}

func (b *backend) sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	s := &session{backend: b, batch: batch{maps: b.maps}, claimed: map[sockFrontendKey]struct{}{}}
	unknown := prev == nil || b.records == nil
	b.retired.Store(want.Ports.Len() == 0)
	if err := b.syncNode(want, unknown); err != nil {
		return err
	}
	var err error
	var lost []lostEndpoint
	var back []terminate.Endpoint
	if unknown {
		if b.ender != nil {
			b.ender.users.start(want.Ports)
		}
		err = s.repair(want)
	} else {
		lost, back = b.lostEndpoints(prev, want)
		err = s.update(prev, want)
	}
	if err != nil {
		return err
	}
	if err := s.finish(want); err != nil {
		return err
	}
	if err := b.attach(ctx, want.Node, unknown); err != nil {
		return err
	}
	b.endSockets(prev, want, lost, back, s.failed)
	used := b.used
	b.told.Store(&used)
	if len(s.failed) > 0 {
		slices.SortFunc(s.failed, func(a, b dataplane.PortError) int { return a.ID.Compare(b.ID) })
		return &dataplane.PartialError{Failed: s.failed}
	}
	return nil
}

// update does what differs between two Snapshots. What goes makes room first,
// though it is deleted last.
func (s *session) update(prev, want *dataplane.Snapshot) error {
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		if cur == nil {
			s.remove(old.ID)
		}
	}
	for _, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		if cur != nil {
			if err := s.put(cur); err != nil {
				return err
			}
		}
	}
	return nil
}

// repair reads the kernel back, makes it as wanted and prunes the rest.
func (s *session) repair(want *dataplane.Snapshot) error {
	held, err := s.readBack()
	if err != nil {
		return err
	}
	if err := remove(s.maps.slots, held.strayedSlots); err != nil {
		return err
	}
	s.records, s.used, s.nextID = make(map[dataplane.PortID]*record, want.Ports.Len()), usage{}, held.nextID
	s.marks, s.marked, s.touched = map[sockAddr]int{}, held.marks, map[sockAddr]struct{}{}
	for a := range held.marks {
		s.touched[a] = struct{}{}
	}
	for port := range want.Ports.All() {
		if r := held.claim(port); r != nil {
			s.records[port.ID] = r
			s.account(r, 1)
		}
	}
	for _, r := range held.records { // those that nobody claimed
		s.removed = append(s.removed, r)
		s.gone = append(s.gone, keysOf(r)...)
	}
	s.gone = append(s.gone, held.strayedFrontends...)
	s.batch.goneSources = append(s.batch.goneSources, held.strayedSources...)
	s.batch.settledSlots = append(s.batch.settledSlots, held.damagedSlots...)
	for port := range want.Ports.All() {
		if err := s.put(port); err != nil {
			return err
		}
	}
	return nil
}

func keysOf(r *record) []sockFrontendKey {
	keys := make([]sockFrontendKey, len(r.frontends))
	for i, e := range r.frontends {
		keys[i] = e.key
	}
	return keys
}

// remove takes a ServicePort out.
func (s *session) remove(id dataplane.PortID) {
	r := s.records[id]
	if r == nil { // refused before
		return
	}
	delete(s.records, id)
	s.account(r, -1)
	s.removed = append(s.removed, r)
	s.gone = append(s.gone, keysOf(r)...)
}

// put makes the kernel hold a ServicePort as it is wanted.
func (s *session) put(port *dataplane.ServicePort) error {
	old := s.records[port.ID]
	if !slices.Contains(s.cfg.Families, port.ID.Family) {
		s.refuse(port, old, fmt.Errorf("this backend does not program %s", port.ID.Family))
		return nil
	}
	id := s.nextID
	if old != nil {
		id = old.master.Id
	}
	next, err := makeRecord(old, port, id)
	if err == nil {
		err = s.fits(old, next)
	}
	if err != nil {
		s.refuse(port, old, err)
		return nil
	}
	if old == nil {
		s.nextID++
	}
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

// refuse notes a ServicePort that stays as it was, and keeps what it has.
func (s *session) refuse(port *dataplane.ServicePort, old *record, err error) {
	s.failed = append(s.failed, dataplane.PortError{ID: port.ID, Err: err})
	if old == nil {
		return
	}
	for _, e := range old.frontends {
		s.claimed[e.key] = struct{}{}
	}
}

// finish writes the rest, then deletes what nobody uses: frontends first, so
// that none ever stands without its Service. Another backend may serve what this
// one does not yet or not any more. So what rejects or drops the rest, marks and
// ranges of ClusterIPs, goes before the frontends and comes after them.
func (s *session) finish(want *dataplane.Snapshot) error {
	if err := s.batch.flush(); err != nil {
		return err
	}
	if err := s.unmark(); err != nil {
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
		s.batch.goneSources = append(s.batch.goneSources, sourceKeys(r.master.Id, r.sources)...)
	}
	if err := remove(s.maps.services, masters); err != nil {
		return err
	}
	if err := remove(s.maps.slots, slots); err != nil {
		return err
	}
	if err := s.batch.settle(); err != nil {
		return err
	}
	if err := s.mark(); err != nil {
		return err
	}
	return s.node.serviceRanges.add(toRanges(want.ServiceCIDRs))
}

// usage is how full the maps are, as the flags count it.
type usage struct {
	frontends, services, slots, sources int
}

// account adds a record to the usage and its ClusterIPs to the marks (n 1), or
// takes them off (n -1).
func (b *backend) account(r *record, n int) {
	b.used.frontends += n * len(r.frontends)
	b.used.services += n
	b.used.slots += n * int(r.slots)
	b.used.sources += n * r.ranges()
	for _, e := range r.frontends {
		if e.value.Flags&frontendClusterIP != 0 {
			b.marks[e.key.Addr] += n
			b.touched[e.key.Addr] = struct{}{}
		}
	}
}

// fits reports whether there is room for next in place of old. The kernel's
// maps are larger than what is counted here (see sizes), so that old and new
// can stand side by side for a moment.
func (b *backend) fits(old, next *record) error {
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
		{"sources", "--ebpf-max-source-ranges", b.used.sources, next.ranges() - have.ranges(), b.opts.MaxSourceRanges},
	} {
		if m.grow > 0 && m.used+m.grow > m.max {
			return fmt.Errorf("the %s map is full: it holds %d of %d and %d more are wanted; raise %s", m.name, m.used, m.max, m.grow, m.flag)
		}
	}
	return nil
}

// unmark takes the mark from the addresses that are no ClusterIPs any more.
func (b *backend) unmark() error {
	var gone []sockFrontendKey
	for a := range b.touched {
		if b.marks[a] > 0 {
			continue
		}
		delete(b.marks, a)
		if _, have := b.marked[a]; have {
			gone = append(gone, markKey(a))
			delete(b.marked, a)
		}
	}
	return remove(b.maps.frontends, gone)
}

// mark marks the addresses that became ClusterIPs.
func (b *backend) mark() error {
	var keys []sockFrontendKey
	var values []sockFrontend
	for a := range b.touched {
		if _, have := b.marked[a]; !have && b.marks[a] > 0 {
			key := markKey(a)
			keys = append(keys, key)
			values = append(values, sockFrontend{Check: checkOf(key), Flags: frontendMark})
			b.marked[a] = struct{}{}
		}
	}
	b.touched = map[sockAddr]struct{}{} // to clear it would keep the size that the first Sync gave it
	return put(b.maps.frontends, keys, values)
}

// compareSlots orders slots by service, generation, slot.
func compareSlots(a, b sockSlotKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Slot, b.Slot))
}

package ebpf

import (
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/pods"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// sockets is the translation of sockets: maps, and programs at the hooks of a
// cgroup. Its calls come from one goroutine at a time, but for observe, Counts and
// Status.
type sockets struct {
	mu        sync.Mutex // held by each half of a Sync, and by observe to compare
	opts      Options
	cfg       dataplane.Config
	base      string // name of the packet backend
	modeFlags programs.SockFlag

	programs *programs.Programs
	maps     *tables // those that Sync writes
	ender    *ender
	pods     *pods.Watcher // nil: nobody's namespace is asked for
	closed   bool

	reading  func()                       // in tests, called while the maps are read; nil: nothing
	told     atomic.Pointer[told]         // after the last Sync
	watching atomic.Pointer[pods.Watcher] // pods, for other goroutines
	reason   string                       // why the mode means less than it says; "": it does not

	held held
}

// told is what other goroutines may ask for.
type told struct {
	used usage
	left map[string]int // ServicePorts left to the packet backend, by reason
}

func (b *sockets) tell() {
	b.told.Store(&told{used: b.held.used, left: maps.Clone(b.held.left.count)})
}

// session is one Sync of the socket maps. Its two halves are before and after
// the packet backend's Sync.
type session struct {
	*sockets
	prev, want *dataplane.Snapshot
	unknown    bool // the maps were read back
	writes     writes
	had        map[dataplane.PortID]uint32 // ids of ServicePorts that were in the maps and are left to packets now
}

// begin stops translating to frontends that want does not have, or that sockets
// cannot serve any more. The packet backend still serves them.
func (b *sockets) begin(prev, want *dataplane.Snapshot) (*session, error) {
	s := &session{sockets: b, prev: prev, want: want, had: map[dataplane.PortID]uint32{}}
	s.unknown = prev == nil || b.held.ports == nil
	if s.unknown || !slices.Equal(prev.Node.Bound, want.Node.Bound) {
		b.held.bound = makeBound(want.Node.Bound)
	}
	if s.unknown {
		return s, s.readHeld()
	}
	wanted := map[programs.SockFrontendKey]struct{}{}
	for _, cur := range b.changes(prev, want) {
		s.addKeys(wanted, cur)
	}
	var gone []programs.SockFrontendKey
	for old, cur := range b.changes(prev, want) {
		id := idOf(old, cur)
		if cur == nil {
			b.held.left.set(id, "")
		}
		p := b.held.ports[id]
		if p == nil {
			continue
		}
		less, some := p.only(wanted)
		gone = append(gone, some...)
		if b.held.account(p, -1); cur == nil {
			delete(b.held.ports, id)
			s.writes.remove(less)
			continue
		}
		b.held.ports[id] = less
		b.held.account(less, 1)
	}
	return s, programs.Remove(b.maps.frontends, gone)
}

// readHeld reads the kernel back, finds the plan of each ServicePort and
// removes the frontends that nobody wants.
func (s *session) readHeld() error {
	b, want := s.sockets, s.want
	read, err := b.maps.read()
	if err != nil {
		return err
	}
	if err := programs.Remove(s.maps.slots, read.strayedSlots); err != nil {
		return err
	}
	b.held.ports, b.held.used, b.held.nextID = make(map[dataplane.PortID]*plan, want.Ports.Len()), usage{}, read.nextID
	b.held.left = left{}
	wanted := map[programs.SockFrontendKey]struct{}{}
	for port := range want.Ports.All() {
		s.addKeys(wanted, port)
		if p := read.claim(port); p != nil {
			b.held.ports[port.ID] = p
		}
	}
	gone := read.strayedFrontends
	for id, p := range b.held.ports {
		less, some := p.only(wanted)
		gone = append(gone, some...)
		b.held.ports[id] = less
		b.held.account(less, 1)
	}
	for _, p := range read.plans { // those that nobody claimed
		less, some := p.only(wanted)
		gone = append(gone, some...)
		s.writes.remove(less)
	}
	s.writes.settledSlots = append(s.writes.settledSlots, read.damagedSlots...)
	return programs.Remove(s.maps.frontends, gone)
}

// finish makes the maps hold what is wanted, less the ServicePorts that the
// packet backend refused: those stay as they were. It comes after that
// backend's Sync, which serves all that sockets do not.
func (s *session) finish(refused []dataplane.PortError) error {
	b := s.sockets
	if err := b.writeNode(s.want, s.unknown); err != nil {
		return err
	}
	stays := map[dataplane.PortID]bool{}
	for _, e := range refused {
		stays[e.ID] = true
	}
	for port := range s.changed() {
		var err error
		switch {
		case !stays[port.ID]:
			err = s.put(port)
		case s.prev == nil:
			if p := s.held.ports[port.ID]; p != nil {
				s.writes.keep(p)
			}
		case s.prev.Ports.Get(port.ID) != nil:
			err = s.put(s.prev.Ports.Get(port.ID))
		}
		if err != nil {
			return err
		}
	}
	if err := b.maps.settle(&s.writes); err != nil {
		return err
	}
	if err := b.attach(s.unknown); err != nil {
		return err
	}
	b.ender.follow(s.prev, s.want, s.unknown, refused, s.idInMaps)
	b.tell()
	return nil
}

// idInMaps returns the id that a ServicePort has in the maps, or had until now.
func (s *session) idInMaps(id dataplane.PortID) (uint32, bool) {
	if p := s.held.ports[id]; p != nil {
		return p.master.Id, true
	}
	had, ok := s.had[id]
	return had, ok
}

// changed returns the ServicePorts to write.
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

// put makes the maps hold a ServicePort as it is wanted, or leaves it to the
// packet backend.
func (s *session) put(port *dataplane.ServicePort) error {
	old := s.held.ports[port.ID]
	served, why := s.served(port)
	if len(served.Frontends) == 0 {
		s.leave(port.ID, old, why)
		return nil
	}
	id := s.held.nextID
	if old != nil {
		id = old.master.Id
	}
	next, err := planFor(old, served, id)
	if err == nil {
		err = s.held.fits(s.opts, old, next)
	}
	if err != nil {
		s.cfg.Log.Warn("sockets leave a Service port to packets", "port", port.ID, "backend", s.base, "reason", err)
		s.leave(port.ID, old, leftNoRoom)
		return nil
	}
	if old == nil {
		s.held.nextID++
	}
	s.held.left.set(port.ID, why)
	s.writes.change(old, next)
	s.held.ports[port.ID] = next
	if old != nil {
		s.held.account(old, -1)
	}
	s.held.account(next, 1)
	if s.writes.full() {
		return s.maps.flush(&s.writes)
	}
	return nil
}

// leave takes a ServicePort out of the maps: the packet backend serves it.
func (s *session) leave(id dataplane.PortID, old *plan, why string) {
	s.held.left.set(id, why) // "": it has no frontend
	if old == nil {
		return
	}
	delete(s.held.ports, id)
	s.had[id] = old.master.Id
	s.held.account(old, -1)
	s.writes.remove(old)
}

// attach makes the kernel run the programs, once the maps are filled. check: see
// that it still does.
func (b *sockets) attach(check bool) error {
	p := b.programs
	if err := p.Attach(check); err != nil {
		return err
	}
	if b.pods == nil && b.modeFlags&programs.SockFlagASK_NAMESPACES != 0 {
		b.pods = pods.Start(p.CgroupRoot, p.Maps[programs.SockMapNamespaces], p.Maps[programs.SockMapStrangers], b.cfg.Log)
		b.watching.Store(b.pods)
	}
	return nil
}

// observe lists where hooks and maps are not as they were left, and tells
// whether that is known of all of them.
func (b *sockets) observe() (differs []string, whole bool, err error) {
	b.mu.Lock()
	differs = problems(b.programs.Check())
	known := b.held.ports != nil
	b.mu.Unlock()
	if !known {
		return differs, false, nil
	}
	if b.reading != nil {
		b.reading()
	}
	read, err := b.maps.read() // a Sync may go on
	if err != nil {
		return nil, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.ports == nil {
		return differs, false, nil
	}
	drift, err := b.drift(read)
	return append(differs, drift...), err == nil, err
}

// close frees what the process holds. Pins hold what translates. A second call
// does nothing.
func (b *sockets) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	var errs []error
	if b.pods != nil {
		b.pods.Close()
	}
	if b.ender != nil {
		errs = append(errs, b.ender.close())
	}
	return errors.Join(append(errs, b.programs.Close())...)
}

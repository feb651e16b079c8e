package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/cgroups"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/internal/follow"
)

const (
	interval     = time.Second            // between two passes
	walkEvery    = 2 * time.Second        // between two walks over all processes
	settle       = 300 * time.Millisecond // without a change before a namespace is looked into again
	mostSettle   = 30 * time.Second       // the same while changes go on
	quietAgain   = 5 * time.Second        // after a look: then a change is a first one
	forget       = 30 * time.Second       // before one that was not found is searched again
	mostFresh    = 64                     // namespaces that one pass looks into
	mostPass     = 5 * time.Second        // before a pass leaves further ones to the next
	quietUnseen  = time.Minute            // between two looks into one that could not be looked into
	sinceForever = -time.Hour
)

// Watcher keeps the map of namespaces that may be translated.
type Watcher struct {
	cgroup     string
	namespaces *ebpf.Map // cookie to value
	strangers  *ebpf.Map // cookies that the programs met and do not know
	log        *slog.Logger
	stop       chan struct{}
	done       sync.WaitGroup

	// Of run's goroutine alone:
	own      string               // name of this process's namespace
	node     *os.File             // the namespace of the thread that started it; nil: it cannot be opened
	known    map[string]string    // process to the name of its namespace
	walked   time.Time            // when all processes were looked at
	searched map[uint64]time.Time // strangers, and when they were searched
	deaf     bool                 // it was logged that namespaces cannot be looked into
	crowded  bool                 // the last search was not whole, and it was logged

	mu     sync.Mutex
	spaces map[string]*space // by name
	closed bool
}

// space is a network namespace of a pod.
type space struct {
	name   string
	file   *os.File         // it keeps the namespace alive; closed as its last process has ended
	pid    string           // one of its processes
	events *follow.Follower // nil: there is no nf_tables
	tables [2]bool          // it has tables nat of legacy iptables

	// Under Watcher.mu:
	findings
	looked  time.Time
	bareFor time.Duration // how long it waits, if it is bare, before it is looked into again
	changes int           // of its nftables, as they were heard of
	gone    bool
}

// Start begins to watch. namespaces and strangers are the maps of that name of
// the socket programs. What an earlier agent found stays until the first pass.
func Start(cgroup string, namespaces, strangers *ebpf.Map, log *slog.Logger) *Watcher {
	w := &Watcher{
		cgroup: cgroup, namespaces: namespaces, strangers: strangers, log: log, stop: make(chan struct{}),
		own: cgroups.NamespaceOf("self"), known: map[string]string{}, searched: map[uint64]time.Time{}, spaces: map[string]*space{},
		walked: time.Now().Add(sinceForever),
	}
	var err error
	if w.node, err = os.Open(cgroups.NamespaceFile("thread-self")); err != nil {
		log.Warn("sockets of pods stay with packets", "error", fmt.Errorf("opening the node's network namespace: %w", err))
		return w
	}
	w.done.Go(w.run)
	return w
}

// Close ends the watch. The map stays as it is.
func (w *Watcher) Close() {
	close(w.stop)
	w.mu.Lock()
	w.closed = true
	for _, s := range w.spaces {
		s.close()
	}
	w.mu.Unlock()
	w.done.Wait()
	_ = w.node.Close()
}

func (w *Watcher) run() {
	w.pass(true)
	w.prune()
	for tick := time.NewTicker(interval); ; {
		select {
		case <-w.stop:
			tick.Stop()
			return
		case <-tick.C:
			w.pass(false)
		}
	}
}

// pass looks after the namespaces that are known, and searches for others if the
// programs met some.
func (w *Watcher) pass(first bool) {
	lost := w.checkKnown()
	strangers, err := w.newStrangers()
	if err != nil {
		w.log.Warn("sockets of new pods stay with packets", "error", err)
	}
	if !first && (!lost && len(strangers) == 0 || time.Since(w.walked) < walkEvery) {
		return
	}
	w.walked = time.Now()
	search, err := cgroups.Search(w.cgroup, w.known)
	if err != nil {
		w.log.Warn("sockets of new pods stay with packets", "error", err)
		return
	}
	if !search.Whole && !w.crowded {
		w.log.Warn("sockets of some pods stay with packets", "error", "there are too many processes or cgroups to look at", "cgroup", w.cgroup)
	}
	w.crowded = !search.Whole
	found := search.Processes
	delete(found, w.own)
	if search.Whole {
		w.dropLost(found)
	}
	fresh := 0
	for name, pid := range found {
		w.mu.Lock()
		s, count := w.spaces[name], len(w.spaces)
		w.mu.Unlock()
		if s != nil {
			s.pid = pid
			continue
		}
		if fresh++; fresh > mostFresh || count >= int(w.namespaces.MaxEntries()) || time.Since(w.walked) > mostPass {
			return // the next pass goes on, as the strangers stay
		}
		w.add(name, pid)
	}
	if !search.Whole {
		return // likewise
	}
	for _, cookie := range strangers {
		w.searched[cookie] = time.Now()
		_ = w.strangers.Delete(cookie) // one that is still not known is noted again
	}
}

// checkKnown looks at the processes of known namespaces and at their legacy
// tables. It reports whether some process has ended.
func (w *Watcher) checkKnown() (lost bool) {
	for _, s := range w.all() {
		if cgroups.NamespaceOf(s.pid) != s.name {
			delete(w.known, s.pid)
			lost = true
			continue
		}
		tables, err := legacyTables("/proc/" + s.pid)
		if err != nil {
			w.foundLegacy(s, false, err)
			continue
		}
		// A rule in a table that is there is seen by asking for the table.
		if tables != s.tables || tables[0] || tables[1] {
			s.tables = tables
			w.lookAtLegacy(s)
		}
		w.mu.Lock()
		again := s.err != nil && time.Since(s.looked) > quietUnseen
		if s.bare && time.Since(s.looked) >= s.bareFor {
			again, s.bareFor = true, min(2*s.bareFor+interval, mostSettle)
		}
		w.mu.Unlock()
		if again {
			w.look(s)
		}
	}
	return lost
}

// lookAtLegacy looks at legacy iptables alone: nobody hears of its changes.
func (w *Watcher) lookAtLegacy(s *space) {
	found := false
	err := netns.Inside(s.file, func() (err error) {
		found, err = legacyTranslates("/proc/thread-self")
		return err
	})
	w.foundLegacy(s, found, err)
}

// foundLegacy notes what a look at legacy iptables found. After an error the
// namespace is left to packets until it was looked into again.
func (w *Watcher) foundLegacy(s *space, found bool, err error) {
	w.mu.Lock()
	if s.legacy = found; err != nil {
		s.err, s.looked = err, time.Now()
	}
	w.mu.Unlock()
	w.write(s)
}

// all returns the namespaces that are known.
func (w *Watcher) all() []*space {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*space, 0, len(w.spaces))
	for _, s := range w.spaces {
		out = append(out, s)
	}
	return out
}

// newStrangers returns the cookies that programs met, are not known and were not
// searched lately.
func (w *Watcher) newStrangers() ([]uint64, error) {
	for cookie, at := range w.searched {
		if time.Since(at) > forget {
			delete(w.searched, cookie)
		}
	}
	var out []uint64
	var cookie uint64
	var once uint32
	all := w.strangers.Iterate()
	for all.Next(&cookie, &once) {
		if _, ok := w.searched[cookie]; !ok {
			out = append(out, cookie)
		}
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("reading the strangers map: %w", err)
	}
	return out, nil
}

// dropLost forgets namespaces that no process is in.
func (w *Watcher) dropLost(found map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.spaces {
		if found[name] != "" {
			continue
		}
		delete(w.spaces, name)
		s.close()
		if s.cookie != 0 {
			_ = w.namespaces.Delete(s.cookie) // its cookie is never used again
		}
	}
}

// close lets go of a namespace. Watcher.mu is held.
func (s *space) close() {
	s.gone = true
	_ = s.file.Close()
	if s.events != nil {
		_ = s.events.Close() // this ends its follower
	}
}

// add looks into a namespace for the first time and follows it from then on.
func (w *Watcher) add(name, pid string) {
	file, err := os.Open(cgroups.NamespaceFile(pid))
	if err != nil {
		return // its process has ended
	}
	s := &space{name: name, file: file, pid: pid, looked: time.Now()}
	s.tables, _ = legacyTables("/proc/" + pid) // look reports what keeps it from reading them
	s.findings = look(file, w.node, true)
	s.events = s.findings.events
	if s.err != nil && !w.deaf {
		w.deaf = true
		w.log.Warn("sockets of some pods stay with packets", "error", s.err)
	}
	w.mu.Lock()
	if w.closed {
		s.close()
	}
	w.spaces[name] = s
	w.mu.Unlock()
	w.write(s)
	if s.events != nil {
		w.done.Go(func() { w.follow(s) }) // it ends at once if that is closed
	}
}

// look looks into a namespace again. What it found does not count if its rules
// changed meanwhile: its follower looks once more.
func (w *Watcher) look(s *space) {
	w.mu.Lock()
	changes := s.changes
	w.mu.Unlock()
	f := look(s.file, w.node, false)
	w.mu.Lock()
	if s.changes != changes {
		w.mu.Unlock()
		return
	}
	if f.cookie == 0 {
		f.cookie = s.cookie
	}
	s.findings, s.looked = f, time.Now()
	w.mu.Unlock()
	w.write(s)
}

// write writes for the programs whether a namespace is translated.
func (w *Watcher) write(s *space) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.cookie == 0 || s.gone {
		return
	}
	value := programs.SockNamespaceNAMESPACE_LEFT
	if s.why() == "" {
		value = programs.SockNamespaceNAMESPACE_TRANSLATED
	}
	var have programs.SockNamespace
	if err := w.namespaces.Lookup(s.cookie, &have); err == nil && have == value {
		return
	}
	if err := w.namespaces.Put(s.cookie, value); err != nil {
		w.log.Warn("sockets of a pod stay with packets", "namespace", s.name, "error", err)
	}
}

// follow waits for changes of a namespace's nftables. With the first its sockets
// are left to packets; they are translated again if nothing changed for a moment
// and no rule is in the way. The moment grows if changes go on, so that a
// namespace whose rules change all the time costs a look now and then.
func (w *Watcher) follow(s *space) {
	var looked time.Time
	for pause := settle; ; looked = time.Now() {
		if _, err := s.events.Next(context.Background()); errors.Is(err, os.ErrClosed) {
			return
		}
		w.mu.Lock()
		s.changing = true
		s.changes++
		w.mu.Unlock()
		w.write(s)
		if pause = min(2*pause, mostSettle); time.Since(looked) > quietAgain {
			pause = settle
		}
		select {
		case <-w.stop:
			return
		case <-time.After(pause):
		}
		if err := s.events.Drain(); errors.Is(err, os.ErrClosed) {
			return
		}
		w.look(s)
	}
}

// prune removes what an earlier agent knew and is not there any more.
func (w *Watcher) prune() {
	here := map[uint64]bool{}
	w.mu.Lock()
	for _, s := range w.spaces {
		here[s.cookie] = true
	}
	w.mu.Unlock()
	var cookie uint64
	var value programs.SockNamespace
	var gone []uint64
	all := w.namespaces.Iterate()
	for all.Next(&cookie, &value) {
		if !here[cookie] {
			gone = append(gone, cookie)
		}
	}
	for _, c := range gone {
		_ = w.namespaces.Delete(c)
	}
}

// Status returns how many namespaces are translated, and how many are left to
// packets, by reason.
func (w *Watcher) Status() (translated int, left map[string]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left = map[string]int{}
	for _, s := range w.spaces {
		if why := s.why(); why == "" {
			translated++
		} else {
			left[why]++
		}
	}
	return translated, left
}

// Of tells of the namespace that has an address: why it is left to packets, ""
// if it is not. ok is false if none is known.
func (w *Watcher) Of(addr netip.Addr) (why string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.spaces {
		if slices.Contains(s.addrs, addr) {
			return s.why(), true
		}
	}
	return "", false
}

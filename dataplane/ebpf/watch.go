package ebpf

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// lookEvery is how often the hooks are looked at. The kernel tells nobody when
// one is detached. A look is a few system calls for each hook.
const lookEvery = time.Second

// lookout notices when somebody detaches a program from a hook, and passes on
// what the packet backend notices.
type lookout struct {
	disturbed chan struct{} // one slot
	expected  atomic.Pointer[programs.Expectation]
	stop      chan struct{}
	once      sync.Once // of closing
	done      sync.WaitGroup
}

// startLookout starts to look. base is told of by the packet backend; nil: of nothing.
func startLookout(base <-chan struct{}) *lookout {
	l := &lookout{disturbed: make(chan struct{}, 1), stop: make(chan struct{})}
	l.done.Go(func() { l.run(base) })
	return l
}

func (l *lookout) run(base <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var last *programs.Expectation // that was found wrong: told once for each Sync
	for {
		select {
		case <-l.stop:
			return
		case <-base:
			l.disturb()
		case <-tick.C:
			if e := l.expected.Load(); e != nil && e != last && e.Check() != nil {
				last = e
				l.disturb()
			}
		}
	}
}

func (l *lookout) disturb() {
	select {
	case l.disturbed <- struct{}{}:
	default:
	}
}

// look makes e what the hooks are compared with.
func (l *lookout) look(e *programs.Expectation) {
	if l != nil { // tests put accelerated backends together themselves
		l.expected.Store(e)
	}
}

func (l *lookout) close() {
	if l == nil {
		return
	}
	l.once.Do(func() { close(l.stop) })
	l.done.Wait()
}

// Disturbed implements dataplane.Watched: what the packet backend notices, and
// hooks that were detached. Nobody tells of a change to eBPF maps. nil: nothing is
// noticed.
func (a *accelerated) Disturbed() <-chan struct{} {
	if a.lookout != nil {
		return a.lookout.disturbed
	}
	return disturbances(a.Backend)
}

func disturbances(b dataplane.Backend) <-chan struct{} {
	if w, ok := b.(dataplane.Watched); ok {
		return w.Disturbed()
	}
	return nil
}

// Undisturbed implements dataplane.Watched. If nobody changed what the packet
// backend wrote, just the socket maps are compared: they take a fraction of the
// time.
func (a *accelerated) Undisturbed() bool {
	w, ok := a.Backend.(dataplane.Watched)
	if !ok || !w.Undisturbed() {
		return false
	}
	if a.sockets == nil {
		return true
	}
	differs, whole, err := a.sockets.observe()
	return err == nil && whole && len(differs) == 0
}

package ebpf

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/link"
)

// lookEvery is how often the hooks are looked at. The kernel tells nobody when
// one is detached. A look is a few system calls for each hook.
const lookEvery = time.Second

// lookout notices when somebody detaches a program from a hook, and passes on
// what the packet backend notices.
type lookout struct {
	disturbed chan struct{} // one slot
	expected  atomic.Pointer[expectation]
	stop      chan struct{}
	once      sync.Once // of closing
	done      sync.WaitGroup
}

// expectation is what the last Sync left at the hooks.
type expectation struct {
	links    string // directory of their pins
	cgroupID uint64
	programs map[string]uint32 // ids by hook; 0: the kernel does not tell
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
	var last *expectation // that was found wrong: told once for each Sync
	for {
		select {
		case <-l.stop:
			return
		case <-base:
			l.disturb()
		case <-tick.C:
			if e := l.expected.Load(); e != nil && e != last && e.check() != nil {
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
func (l *lookout) look(e *expectation) {
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

// expect returns what the hooks must run from now on; nil: nothing yet.
func (b *sockets) expect() *expectation {
	if !b.attached {
		return nil
	}
	e := &expectation{links: b.dirs.links, cgroupID: b.cgroupID, programs: map[string]uint32{}}
	for _, h := range hooks() {
		id, _ := programID(b.programs.Programs[h.name])
		e.programs[h.name] = uint32(id)
	}
	return e
}

// errDetached says that a hook does not run our program.
var errDetached = errors.New("a hook does not run our program")

// check opens each pinned link and asks what it runs.
func (e *expectation) check() error {
	for name, program := range e.programs {
		l, err := link.LoadPinnedLink(filepath.Join(e.links, name), nil)
		if err != nil {
			return err
		}
		info, err := l.Info()
		if err = errors.Join(err, l.Close()); err != nil {
			return err
		}
		cgroup := info.Cgroup()
		if cgroup == nil || cgroup.CgroupId != e.cgroupID || program != 0 && uint32(info.Program) != program {
			return errDetached
		}
	}
	return nil
}

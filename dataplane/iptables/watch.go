package iptables

import (
	"log/slog"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// ownMemory is how long the commands that we ran are known by their process
// ids: the kernel's messages about what they did may be read late.
const ownMemory = 10 * time.Second

// watch notices when somebody else changes our rules. The kernel says so of
// iptables-nft. Of legacy it says nothing, so that one is looked at.
type watch struct {
	log       *slog.Logger
	disturbed chan struct{} // one slot
	follower  *nft.Follower // nil: nothing is heard
	poller    *poller       // nil: of nft
	stop      chan struct{}
	once      sync.Once // of closing
	closing   atomic.Bool
	done      sync.WaitGroup

	mu  sync.Mutex
	own map[uint32]time.Time // when our commands were started, by process id
}

func newWatch(log *slog.Logger) *watch {
	return &watch{log: log, disturbed: make(chan struct{}, 1), stop: make(chan struct{}), own: map[uint32]time.Time{}}
}

// startWatch starts to watch the rules of a variant. Without the watch, the
// audits find what others changed.
func startWatch(log *slog.Logger, v restore.Variant, families []*familyBackend) *watch {
	w := newWatch(log)
	if v == restore.Legacy {
		w.poller = newPoller(w, families)
		w.done.Go(w.poller.run)
		return w
	}
	f, err := nft.Follow()
	if err != nil {
		log.Warn("cannot listen to nftables; changes by others are found by audits alone", "error", err)
		return w
	}
	w.follower = f
	w.done.Go(w.follow)
	return w
}

func (w *watch) follow() {
	for {
		notices, err := w.follower.NextNaming(ownPrefix, "SY-")
		if w.closing.Load() {
			return
		}
		if err == nil && !slices.ContainsFunc(notices, w.foreign) {
			continue
		}
		w.disturb()
	}
}

func (w *watch) disturb() {
	w.log.Debug("somebody else may have changed our iptables rules")
	select {
	case w.disturbed <- struct{}{}:
	default:
	}
}

// foreign reports whether none of our commands made a change. The kernel names
// the netlink socket that asked for it by the process id.
func (w *watch) foreign(n nft.Notice) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ours := w.own[n.PortID]
	return !ours && (n.Table == restore.NAT || n.Table == restore.Filter)
}

// start starts a command of ours. The lock keeps the kernel's message about it
// from being judged before its process id is known.
func (w *watch) Start(cmd *exec.Cmd) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for pid, at := range w.own {
		if time.Since(at) > ownMemory {
			delete(w.own, pid)
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.own[uint32(cmd.Process.Pid)] = time.Now() //nolint:gosec // process ids are small and positive
	return nil
}

// ended notes again when a command was last seen: it may have run for long.
func (w *watch) Ended(cmd *exec.Cmd) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.own[uint32(cmd.Process.Pid)] = time.Now() //nolint:gosec // process ids are small and positive
}

// pause stops the watch while we write so much that the kernel should not report
// it (all), or anything to tables of legacy. What others change meanwhile is
// found by the next audit.
func (w *watch) pause(all bool) (resume func()) {
	switch {
	case w.poller != nil:
		return w.poller.pause()
	case w.follower == nil || !all:
		return func() {}
	}
	if err := w.follower.Pause(); err != nil {
		w.log.Warn("cannot pause the watch on nftables", "error", err)
		return func() {}
	}
	return func() {
		if err := w.follower.Resume(); err != nil {
			w.log.Warn("cannot listen to nftables again; changes by others are found by audits alone", "error", err)
		}
	}
}

// Disturbed returns what receives after somebody else may have changed our rules.
func (b *backend) Disturbed() <-chan struct{} { return b.watch.disturbed }

// Undisturbed reports false: rules of others that are before ours do not name us, so
// that only reading back finds them.
func (b *backend) Undisturbed() bool { return false }

func (w *watch) close() error {
	w.closing.Store(true)
	w.once.Do(func() { close(w.stop) })
	var err error
	if w.follower != nil {
		err = w.follower.Close()
	}
	w.done.Wait()
	return err
}

var _ dataplane.Watched = (*backend)(nil)

package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// Watch notices when somebody else changes our tables.
type Watch struct {
	log       *slog.Logger
	follower  *Follower
	tables    []*Table
	commits   *commits      // of all tables
	disturbed chan struct{} // one slot
	unsure    atomic.Bool   // somebody may have changed our tables since they were last read
	closing   atomic.Bool
	done      sync.WaitGroup
}

// StartWatch watches tables of one name, at least one, which nobody uses yet.
func StartWatch(log *slog.Logger, tables []*Table) (*Watch, error) {
	f, err := Follow()
	if err != nil {
		return nil, err
	}
	w := &Watch{log: log, follower: f, tables: tables, commits: &commits{}, disturbed: make(chan struct{}, 1)}
	for _, t := range tables {
		t.commits = w.commits
	}
	w.unsure.Store(true)
	w.done.Go(w.run)
	return w, nil
}

func (w *Watch) run() {
	for {
		notices, err := w.follower.Next(w.tables[0].spec.Name)
		if w.closing.Load() {
			return
		}
		if err == nil && !slices.ContainsFunc(notices, w.foreign) {
			continue
		}
		w.log.Debug("somebody else may have changed our nftables tables", "error", err)
		w.Disturb()
	}
}

// Disturb says that somebody else may have changed what a backend wrote.
func (w *Watch) Disturb() {
	w.unsure.Store(true)
	select {
	case w.disturbed <- struct{}{}:
	default:
	}
}

// foreign reports whether somebody else changed a table of ours.
func (w *Watch) foreign(n Notice) bool {
	return slices.ContainsFunc(w.tables, func(t *Table) bool { return t.Family == n.Family && t.PortID() != n.PortID })
}

// Seen says that the tables are about to be read.
func (w *Watch) Seen() { w.unsure.Store(false) }

// Paused does what writes so much to a table of the watch that the kernel shall not
// tell us of it. It asks by t, as do may. If somebody else may have changed anything
// of nftables meanwhile, it calls Disturb.
func (w *Watch) Paused(t *Table, do func() error) error {
	before, errBefore := w.foreignCommits(t) // while the kernel still tells us
	if err := w.follower.Pause(); err != nil {
		return fmt.Errorf("pausing the watch on nftables: %w", err)
	}
	w.unsure.Store(true)
	err := errors.Join(do(), w.follower.Resume())
	w.unsure.Store(true)                   // whatever was read meanwhile
	after, errAfter := w.foreignCommits(t) // when it tells us again
	if unknown := errors.Join(errBefore, errAfter); unknown != nil || before != after {
		w.log.Debug("somebody else may have changed our nftables tables while we wrote them", "error", unknown)
		w.Disturb()
	}
	return err
}

// foreignCommits returns a number that moves by one for each transaction that is
// none of our tables'.
func (w *Watch) foreignCommits(t *Table) (uint32, error) {
	if err := t.open(); err != nil {
		return 0, err
	}
	at, err := t.now()
	return at.foreign, err
}

// Reader returns a Table to read one of the watch's tables with, while others
// write it.
func (w *Watch) Reader(t *Table) *Table {
	r := NewTable(t.Family, t.spec, &Counts{})
	r.commits = w.commits
	return r
}

// Disturbed receives after somebody else changed the tables, or may have.
func (w *Watch) Disturbed() <-chan struct{} { return w.disturbed }

// Undisturbed reports that nobody has since Seen.
func (w *Watch) Undisturbed() bool { return !w.unsure.Load() }

// Close ends the watch.
func (w *Watch) Close() error {
	w.closing.Store(true)
	err := w.follower.Close()
	w.done.Wait()
	return err
}

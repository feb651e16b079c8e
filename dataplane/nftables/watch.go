package nftables

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// errorPause follows each failure to listen: the kernel drops messages that
// nobody reads in time.
const errorPause = 100 * time.Millisecond

// watch notices when somebody else changes our tables.
type watch struct {
	log       *slog.Logger
	follower  *nft.Follower
	tables    []*nft.Table
	disturbed chan struct{} // one slot
	unsure    atomic.Bool   // somebody may have changed our tables since they were last read
	localhost atomic.Bool   // NodePorts answer on 127.0.0.0/8
	closing   atomic.Bool
	done      sync.WaitGroup
}

func startWatch(log *slog.Logger, tables []*nft.Table) (*watch, error) {
	f, err := nft.Follow()
	if err != nil {
		return nil, err
	}
	w := &watch{log: log, follower: f, tables: tables, disturbed: make(chan struct{}, 1)}
	w.unsure.Store(true)
	w.done.Go(w.run)
	return w, nil
}

func (w *watch) run() {
	for {
		notices, err := w.follower.Next(tableName)
		if w.closing.Load() {
			return
		}
		if err == nil && !slices.ContainsFunc(notices, w.foreign) {
			continue
		}
		w.log.Debug("somebody else may have changed our nftables tables", "error", err)
		w.unsure.Store(true)
		select {
		case w.disturbed <- struct{}{}:
		default:
		}
		if err != nil { // should it last
			time.Sleep(errorPause)
		}
	}
}

// foreign reports whether somebody else changed a table of ours.
func (w *watch) foreign(n nft.Notice) bool {
	return slices.ContainsFunc(w.tables, func(t *nft.Table) bool { return t.Family == n.Family && t.PortID() != n.PortID })
}

// seen says that the tables are about to be read.
func (w *watch) seen() { w.unsure.Store(false) }

// paused does what writes so much that the kernel shall not tell us of it. Who
// else changes our tables meanwhile is found by the next Observe.
func (w *watch) paused(do func() error) error {
	if err := w.follower.Pause(); err != nil {
		return fmt.Errorf("pausing the watch on nftables: %w", err)
	}
	defer w.unsure.Store(true) // whatever was read meanwhile
	w.unsure.Store(true)
	return errors.Join(do(), w.follower.Resume())
}

// Disturbed implements dataplane.Watched.
func (b *backend) Disturbed() <-chan struct{} { return b.watch.disturbed }

// Undisturbed implements dataplane.Watched. The kernel says nothing of its
// settings, so that one is read.
func (b *backend) Undisturbed() bool {
	if b.watch.localhost.Load() {
		if on, err := localnet.IsOn(); err != nil || !on {
			return false
		}
	}
	return !b.watch.unsure.Load()
}

// close ends the goroutine.
func (w *watch) close() error {
	w.closing.Store(true)
	err := w.follower.Close()
	w.done.Wait()
	return err
}

package ipvs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/ipvs"

	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

const (
	// lookEvery is how often our services are counted.
	lookEvery = time.Second
	// lookDuty is how many times as long as a count the time to the next one is.
	lookDuty = 100
)

// watch notices when somebody else changes our tables, or when services of ours
// come or go. The kernel tells nobody of services, so they are counted.
type watch struct {
	tables *nft.Watch
	handle *ipvs.Handle
	own    *atomic.Int64 // services that we made, less those that we removed
	syncs  atomic.Uint64 // Syncs that began or ended; odd while one runs

	known bool
	base  int64 // services of ours but for those in own, when they were last counted
	stop  context.CancelFunc
	done  sync.WaitGroup
}

func startWatch(b *backend) (*watch, error) {
	var ours []*nft.Table
	for _, f := range b.families {
		ours = append(ours, f.table)
	}
	tables, err := nft.StartWatch(b.log, ours)
	if err != nil {
		return nil, err
	}
	handle, err := ipvs.New("")
	if err != nil {
		return nil, errors.Join(err, tables.Close())
	}
	w := &watch{tables: tables, handle: handle, own: &b.kernel.own}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.done.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *watch) run(ctx context.Context) {
	for pause := lookEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		if w.lost() {
			w.tables.Disturb()
		}
		pause = max(lookEvery, lookDuty*time.Since(began))
	}
}

// lost reports whether there are more or fewer services of ours than when they
// were last counted, and than we made or removed since. A dump may leave some out
// (see kernel.services), so that two must agree.
func (w *watch) lost() bool {
	base, ok := w.count()
	if ok && w.known && base != w.base {
		again, sure := w.count()
		ok = sure && again == base
	}
	if !ok { // the next count tells
		return false
	}
	lost := w.known && base != w.base
	w.known, w.base = true, base
	return lost
}

// count counts the services of ours but for those in own; false: a Sync ran.
func (w *watch) count() (base int64, ok bool) {
	syncs, own := w.syncs.Load(), w.own.Load()
	if syncs%2 == 1 {
		return 0, false
	}
	list, err := w.handle.GetServices()
	if err != nil || w.syncs.Load() != syncs {
		return 0, false
	}
	for _, s := range list {
		if s.Timeout == ownTimeout {
			base++
		}
	}
	return base - own, true
}

// pause keeps a Sync's changes from being counted halfway. What it returns ends that.
func (w *watch) pause() (resume func()) {
	w.syncs.Add(1)
	return func() { w.syncs.Add(1) }
}

func (w *watch) close() error {
	w.stop()
	w.done.Wait()
	w.handle.Close()
	return w.tables.Close()
}

// Disturbed implements dataplane.Watched.
func (b *backend) Disturbed() <-chan struct{} { return b.watch.tables.Disturbed() }

// Undisturbed implements dataplane.Watched. Nothing tells of changes to routes and
// to what a service is made of.
func (b *backend) Undisturbed() bool { return false }

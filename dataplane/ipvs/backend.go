package ipvs

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// backend is the IPVS of one network namespace.
type backend struct {
	dataplane.Resting
	options  Options
	cfg      dataplane.Config
	log      *slog.Logger
	families []*familyBackend // in order of cfg.Families
	counts   counts
	reader   *kernel // for Observe alongside
	watch    *watch

	stop    context.CancelFunc
	drainer sync.WaitGroup

	mu     sync.Mutex // Sync or the drainer: they share a socket
	kernel *kernel
	drains map[draining]time.Time
	// accepted is what the kernel held after the last Sync that succeeded; nil: there was none.
	accepted   *dataplane.Snapshot
	schedulers map[string]triedScheduler // those that were asked for
	// searchScheduler asks the kernel for one.
	searchScheduler func(name string) error
}

// familyBackend is the part of the backend that is of one family: a table, IPVS
// services and routes.
type familyBackend struct {
	backend *backend
	table   *nft.Table
	reader  *nft.Table // for Observe alongside Syncs

	left
	noted atomic.Pointer[left] // what the last Sync left, for Observe alongside; nil: unknown
	refs  map[nft.Element]int  // how many ServicePorts want each shared element
}

// left is what Syncs left in the kernel.
type left struct {
	held     *dataplane.Snapshot // nil: unknown
	node     node
	ids      *affinity.IDs
	localnet localnet.State
}

// Traits say that the kernel is read alongside.
func (b *backend) Traits() dataplane.Traits { return dataplane.Traits{ObservesAlongside: true} }

// Families implements dataplane.Familied.
func (b *backend) Families() []dataplane.Family { return b.cfg.Families }

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.watch.pause()()
	before, fault := prev, error(nil)
	if before == nil {
		before = b.outside(b.accepted) // what is refused now and was not then stays as it was
	}
	accepted, failed := dataplane.Refuse(before, want, func(p *dataplane.ServicePort) error {
		why, err := b.refusal(p)
		if fault == nil {
			fault = err
		}
		return why
	})
	if fault != nil {
		return fault
	}
	accepted, more, err := b.program(ctx, prev, before, accepted)
	held := dataplane.Held(b.accepted, accepted, err)
	if held == nil {
		return err
	}
	b.accepted = held
	return errors.Join(err, dataplane.NewPartialError(eachOnce(failed, more)))
}

// eachOnce joins what was refused before and while it was written: an earlier form may
// be refused as well.
func eachOnce(failed, more []dataplane.PortError) []dataplane.PortError {
	named := map[dataplane.PortID]bool{}
	return slices.DeleteFunc(slices.Concat(failed, more), func(e dataplane.PortError) bool {
		again := named[e.ID]
		named[e.ID] = true
		return again
	})
}

// program writes each family, and returns what was accepted of want and what the
// kernel refused. What both families need of the kernel is read once. before is what
// ServicePorts can fall back to; nil: nothing.
func (b *backend) program(ctx context.Context, prev, before, want *dataplane.Snapshot) (*dataplane.Snapshot, []dataplane.PortError, error) {
	common := sync.OnceValues(func() (*common, error) {
		if err := b.applySettings(); err != nil {
			return nil, err
		}
		return b.kernel.readCommon()
	})
	var refused []dataplane.PortError
	var failed []dataplane.FamilyFailure
	well := 0
	for _, f := range b.families {
		if b.Rests(f.table.Family) {
			continue
		}
		if prev == nil {
			f.held = nil // it is to be read back
		}
		accepted, some, err := f.sync(ctx, before, want, common)
		if err != nil {
			failed = append(failed, dataplane.FamilyFailure{Family: f.table.Family, Err: err})
			continue
		}
		want, refused = accepted, append(refused, some...)
		well++
	}
	return want, refused, dataplane.NewFamilyError(failed, well)
}

// sync makes the family's part of the kernel as want describes, and returns what was
// accepted of that and what the kernel refused. common reads what both families need.
func (f *familyBackend) sync(ctx context.Context, before, want *dataplane.Snapshot, common func() (*common, error)) (*dataplane.Snapshot, []dataplane.PortError, error) {
	held := f.held
	f.held = nil
	next := f.nodeFor(want)
	var refused []refusedService
	var failed []dataplane.PortError
	var err error
	if held != nil && next.samePlans(&f.node) && !next.rebinds(&f.node, want.Ports) {
		before = held // it is exact
		refused, err = f.change(ctx, &next, held, want)
	} else {
		err = f.backend.watch.tables.Paused(f.table, func() (err error) {
			refused, err = f.full(ctx, &next, want, common)
			return err
		})
	}
	if err == nil {
		want, failed, err = f.fallBack(ctx, f.target(), &next, before, want, refused)
	}
	if err != nil {
		f.noted.Store(nil)
		return nil, nil, err
	}
	f.node, f.held = next, want
	now := f.left
	f.noted.Store(&now)
	return want, failed, nil
}

// change writes what differs between two Snapshots, the first of which the
// kernel holds.
func (f *familyBackend) change(ctx context.Context, next *node, prev, want *dataplane.Snapshot) ([]refusedService, error) {
	d := newDiff(f.table, next, f.ids.Of, f.refs)
	if prev.Node != want.Node || !slices.Equal(prev.ServiceCIDRs, want.ServiceCIDRs) {
		if err := d.ChangeChains(rulesFor(&f.node).constants(), rulesFor(next).constants()); err != nil {
			return nil, err
		}
	}
	d.change(&f.node, f.ids, prev.Ports, want.Ports)
	return f.write(ctx, f.target(), d, f.localnet)
}

// full reads the kernel back and writes what differs.
func (f *familyBackend) full(ctx context.Context, next *node, want *dataplane.Snapshot, common func() (*common, error)) ([]refusedService, error) {
	all, err := common()
	if err != nil {
		return nil, err
	}
	held, err := all.ofFamily(f.backend.kernel, f.table)
	if err != nil {
		return nil, err
	}
	next.taken = held.taken
	f.localnet = localnet.Resume(held.table.Chains[chainInput], f.localnet)
	state, err := localnet.Next(next.localhost, f.localnet)
	if err != nil {
		return nil, err
	}
	before := f.ids
	f.ids = affinity.Resume(want.Ports, func(p *dataplane.ServicePort) uint32 { return cmp.Or(held.table.NumberOf(p, setIDs), before.Known(p)) })
	d, err := whole(f.table, next, f.ids.Of, held, state)
	if err != nil {
		return nil, err
	}
	d.wantAll(want.Ports)
	f.refs = d.Refs
	return f.write(ctx, f.target(), d, state)
}

// Observe reads tables, services and routes back, and compares all of them with
// what they should hold where that is known.
func (b *backend) Observe(_ context.Context) (*dataplane.Observation, error) {
	b.watch.tables.Seen()
	all, err := b.reader.readCommon()
	if err != nil {
		return nil, err
	}
	out := &dataplane.Observation{Whole: true}
	for _, f := range b.families {
		if b.Rests(f.table.Family) {
			continue
		}
		held, err := all.ofFamily(b.reader, f.reader)
		if err != nil {
			return nil, err
		}
		out.Frontends = append(out.Frontends, observe(f.table.Family, held)...)
		left := f.noted.Load() // a Sync may have ended since
		if left == nil {
			out.Whole = false
			continue
		}
		drift, err := left.drift(f.reader, held)
		if err != nil {
			return nil, err
		}
		out.Other = append(out.Other, drift...)
	}
	slices.Sort(out.Other)
	out.Sort()
	return out, nil
}

// Close ends the drainer; a later process goes on with it.
func (b *backend) Close() error {
	b.stop()
	b.drainer.Wait()
	errs := []error{b.watch.close()}
	b.kernel.close()
	b.reader.close()
	for _, f := range b.families {
		errs = append(errs, f.table.Close(), f.reader.Close())
	}
	return errors.Join(errs...)
}

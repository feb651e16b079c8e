package nftables

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// backend is the nftables of one network namespace.
type backend struct {
	dataplane.Resting
	cfg      dataplane.Config
	log      *slog.Logger
	families []*familyBackend // in order of cfg.Families
	counts   nft.Counts
	watch    *nft.Watch
	counter  *counter
	// refused are the ServicePorts that the kernel did not take in the last Sync, and why.
	refused map[*dataplane.ServicePort]error
	// accepted is what the kernel held after the last Sync that succeeded; nil: there was none.
	accepted *dataplane.Snapshot
}

// familyBackend is the part of the backend that is of one family: a table.
type familyBackend struct {
	table     *nft.Table
	reader    *nft.Table // of the same table, for Observe alongside Syncs
	log       *slog.Logger
	watch     *nft.Watch
	mark      uint32
	localhost bool // the agent is told to serve NodePorts on 127.0.0.0/8
	// routesLocalhost: the kernel is to route 127.0.0.0/8.
	routesLocalhost atomic.Bool

	left
	noted atomic.Pointer[left] // what the last Sync left, for Observe alongside; nil: unknown
	refs  map[nft.Element]int  // how many ServicePorts want each shared element
	// remake: the kernel did not take a change, so the next one makes the table anew.
	remake bool
}

// left is what Syncs left in the kernel.
type left struct {
	held     *dataplane.Snapshot // nil: unknown
	node     node
	ids      *affinity.IDs
	localnet localnet.State
	// localnetFailed is why the kernel does not route 127.0.0.0/8; nil: it does as it shall.
	localnetFailed error
}

// Traits say that the tables are read alongside.
func (b *backend) Traits() dataplane.Traits { return dataplane.Traits{ObservesAlongside: true} }

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	none := func(*familyBackend) bool { return false }
	b.retryRefused(want)
	accepted, failed := b.refuse(prev, want)
	err := b.program(ctx, prev, accepted, none)
	if isRefusal(err) && b.findRefused(prev, accepted) {
		accepted, failed = b.refuse(prev, want)
		err = b.program(ctx, nil, accepted, none)
	}
	if isRefusal(err) { // something that we do not know of is in the way
		for _, f := range b.families {
			f.remake = f.held == nil
		}
		b.log.Warn("the kernel does not take a change to our nftables table; making the table again", "error", err)
		err = b.program(ctx, nil, accepted, func(f *familyBackend) bool { return f.held == accepted })
	}
	held := dataplane.Held(b.accepted, accepted, err)
	if held == nil {
		return err
	}
	b.accepted = held
	return errors.Join(err, dataplane.NewPartialError(failed))
}

// program writes each family's table, but for those that are done. If it fails for
// some and not for all, it returns a FamilyError.
func (b *backend) program(ctx context.Context, prev, want *dataplane.Snapshot, done func(*familyBackend) bool) error {
	var failed []dataplane.FamilyFailure
	well := 0
	for _, f := range b.families {
		if b.Rests(f.table.Family) {
			continue
		}
		if done(f) {
			well++
		} else if err := f.sync(ctx, prev, want); err != nil {
			failed = append(failed, dataplane.FamilyFailure{Family: f.table.Family, Err: err})
		} else {
			well++
		}
	}
	return dataplane.NewFamilyError(failed, well)
}

// sync makes the table as want describes.
func (f *familyBackend) sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	var err error
	known := prev != nil && f.held != nil
	f.held = nil
	if known {
		err = f.change(prev, want)
	} else {
		err = f.watch.Paused(f.table, func() error { return f.full(ctx, want) })
	}
	if err != nil {
		f.noted.Store(nil)
		return err
	}
	f.held = want
	now := f.left
	f.noted.Store(&now)
	return nil
}

// change writes what differs between two Snapshots, the first of which the
// kernel holds.
func (f *familyBackend) change(prev, want *dataplane.Snapshot) error {
	next, state := f.node, f.localnet
	if prev.Node != want.Node || !slices.Equal(prev.ServiceCIDRs, want.ServiceCIDRs) {
		next = f.nodeFor(want)
		var err error
		if state, err = localnet.Next(next.localhost, f.localnet); err != nil {
			return err
		}
	}
	d := newDiff(f.table, rulesFor(&next), f.ids.Of, f.refs)
	if err := d.changeNode(&f.node, &next, state == f.localnet); err != nil {
		return err
	}
	if err := d.change(f.ids, prev.Ports, want.Ports, func() error { return f.writePart(d, state) }); err != nil {
		return err
	}
	if err := f.writeFirst(&d.First, state); err != nil {
		return err
	}
	f.node = next
	return f.table.Write(&d.Last, f.localnet.Notes(chainInput))
}

// full reads the table back and writes what differs.
func (f *familyBackend) full(ctx context.Context, want *dataplane.Snapshot) error {
	held, err := f.table.Read()
	if err != nil {
		return err
	}
	next := f.nodeFor(want)
	f.localnet = localnet.Resume(held.Chains[chainInput], f.localnet)
	state, err := localnet.Next(next.localhost, f.localnet)
	if err != nil {
		return err
	}
	held.Strange = held.Strange || f.remake
	before := f.ids
	f.ids = affinity.Resume(want.Ports, func(p *dataplane.ServicePort) uint32 { return cmp.Or(held.NumberOf(p, setIDs), before.Known(p)) })
	d, err := whole(f.table, &next, f.ids.Of, held, state.Notes(chainInput))
	if err != nil {
		return err
	}
	err = d.wantAll(want.Ports, func() error {
		if err := f.writePart(d, state); err != nil || !held.Present {
			return err
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := f.writeFirst(&d.First, state); err != nil {
		return err
	}
	f.node, f.refs, f.remake = next, d.Refs, false
	return f.table.Write(&d.Last, f.localnet.Notes(chainInput))
}

// Observe reads the tables back, and compares all of them with what they should
// hold where that is known.
func (b *backend) Observe(_ context.Context) (*dataplane.Observation, error) {
	out := &dataplane.Observation{Whole: true}
	b.watch.Seen()
	for _, f := range b.families {
		if b.Rests(f.table.Family) {
			continue
		}
		held, err := f.reader.Read()
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

// Disturbed implements dataplane.Watched.
func (b *backend) Disturbed() <-chan struct{} { return b.watch.Disturbed() }

// Undisturbed implements dataplane.Watched. The kernel says nothing of its
// settings, so that one is read.
func (b *backend) Undisturbed() bool {
	for _, f := range b.families {
		if !f.routesLocalhost.Load() {
			continue
		}
		if on, err := localnet.IsOn(); err != nil || !on {
			return false
		}
	}
	return b.watch.Undisturbed()
}

// Close frees what the process holds and leaves forwarding in place.
func (b *backend) Close() error {
	errs := []error{b.watch.Close(), b.counter.close()}
	for _, f := range b.families {
		errs = append(errs, f.table.Close(), f.reader.Close())
	}
	return errors.Join(errs...)
}

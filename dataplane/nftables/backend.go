package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// backend is the nftables of one network namespace.
type backend struct {
	dataplane.Resting
	cfg     dataplane.Config
	log     *slog.Logger
	halves  []*half // in order of cfg.Families
	counts  nft.Counts
	watch   *nft.Watch
	counter *counter
	// refused are ServicePorts that the kernel did not take, and why. They are tried
	// again when they change.
	refused map[*dataplane.ServicePort]error
	// accepted is what the kernel held after the last Sync that succeeded; nil: there was none.
	accepted *dataplane.Snapshot
}

// Traits say that the tables are read alongside.
func (b *backend) Traits() dataplane.Traits { return dataplane.Traits{ObservesAlongside: true} }

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	none := func(*half) bool { return false }
	accepted, failed := b.refuse(prev, want)
	err := b.program(ctx, prev, accepted, none)
	if isRefusal(err) && b.findRefused(prev, accepted) {
		accepted, failed = b.refuse(prev, want)
		err = b.program(ctx, nil, accepted, none)
	}
	if isRefusal(err) { // something that we do not know of is in the way
		for _, h := range b.halves {
			h.remake = h.held == nil
		}
		b.log.Warn("the kernel does not take a change to our nftables table; making the table again", "error", err)
		err = b.program(ctx, nil, accepted, func(h *half) bool { return h.held == accepted })
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
func (b *backend) program(ctx context.Context, prev, want *dataplane.Snapshot, done func(*half) bool) error {
	var failed []dataplane.FamilyFailure
	well := 0
	for _, h := range b.halves {
		if b.Rests(h.table.Family) {
			continue
		}
		if done(h) {
			well++
		} else if err := h.sync(ctx, prev, want); err != nil {
			failed = append(failed, dataplane.FamilyFailure{Family: h.table.Family, Err: err})
		} else {
			well++
		}
	}
	return dataplane.NewFamilyError(failed, well)
}

// refuse takes out of want what cannot be programmed; that stays as it was.
func (b *backend) refuse(prev, want *dataplane.Snapshot) (*dataplane.Snapshot, []dataplane.PortError) {
	before := prev
	if before == nil {
		before = b.accepted // what is refused now and was not then stays as it was
	}
	return dataplane.Refuse(before, want, b.refusal)
}

// refusal is why a ServicePort cannot be programmed, nil if it can.
func (b *backend) refusal(port *dataplane.ServicePort) error {
	if !slices.Contains(b.cfg.Families, port.ID.Family) {
		return fmt.Errorf("the agent programs no %s here", port.ID.Family)
	}
	if why := b.refused[port]; why != nil {
		return why
	}
	const mostRanges = 4096 // each one costs the kernel more than the one before
	for _, f := range port.Frontends {
		if len(f.Sources) > mostRanges {
			return fmt.Errorf("%s has %d source ranges; nftables takes %d at most", f.Addr, len(f.Sources), mostRanges)
		}
	}
	for _, f := range port.Frontends {
		for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
			if pool != nil && len(pool.Endpoints) > int(wayCount) {
				return fmt.Errorf("%s has %d endpoints; nftables takes %d at most", f.Addr, len(pool.Endpoints), wayCount)
			}
		}
	}
	return nil
}

// Observe reads the tables back, and compares all of them with what they should
// hold where that is known.
func (b *backend) Observe(_ context.Context) (*dataplane.Observation, error) {
	out := &dataplane.Observation{Whole: true}
	b.watch.Seen()
	for _, h := range b.halves {
		if b.Rests(h.table.Family) {
			continue
		}
		state, err := h.reader.Read()
		if err != nil {
			return nil, err
		}
		out.Frontends = append(out.Frontends, observe(h.table.Family, state)...)
		noted := h.noted.Load() // a Sync may have ended since
		if noted == nil {
			out.Whole = false
			continue
		}
		drift, err := noted.drift(state)
		if err != nil {
			return nil, err
		}
		out.Other = append(out.Other, drift...)
	}
	slices.Sort(out.Other)
	out.Sort()
	return out, nil
}

// Close frees what the process holds and leaves forwarding in place.
func (b *backend) Close() error {
	errs := []error{b.watch.Close(), b.counter.close()}
	for _, h := range b.halves {
		errs = append(errs, h.table.Close(), h.reader.Close())
	}
	return errors.Join(errs...)
}

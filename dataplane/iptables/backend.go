package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// backend programs both families alongside each other. What befalls one does not stop
// the other.
type backend struct {
	dataplane.Resting
	families []*familyBackend
	others   []*restore.Commands // of the variant that is not in use, until it is known to be clear of us
	lock     *restore.Lock
	watch    *watch
	// accepted is what the kernel held after the last Sync that succeeded. It says what
	// prev does not: which of the refused ServicePorts are absent, and, where prev is
	// nil, what they fall back to.
	accepted *dataplane.Snapshot
}

var errFamily = errors.New("this address family is not programmed")

// Traits say that iptables goes through all rules, and reads them alongside.
func (b *backend) Traits() dataplane.Traits {
	return dataplane.Traits{CostGrows: true, ObservesAlongside: true}
}

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	unlock, err := b.lock.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	err = b.sync(ctx, prev, want)
	if b.clearOthers(ctx) {
		// The other variant had switched on what we then found on.
		err = b.sync(ctx, nil, want)
	}
	return err
}

func (b *backend) sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	defer b.watch.pause(prev == nil)()
	defer func() {
		for _, f := range b.families {
			f.note(b.accepted)
		}
	}()
	ours, refusals := dataplane.Refuse(prev, want, b.refusal)
	var failed []dataplane.FamilyFailure
	var stay []*dataplane.ServicePort
	var absent []dataplane.PortID
	well := 0
	for _, r := range b.syncFamilies(ctx, prev != nil, ours) {
		if r.err != nil {
			failed = append(failed, dataplane.FamilyFailure{Family: r.family.family, Err: r.err})
			continue
		}
		well++
		r.family.written.Store(true)
		for id, err := range r.refused {
			refusals = append(refusals, dataplane.PortError{ID: id, Err: err})
			if p := r.family.held.port(id); p != nil {
				stay = append(stay, p)
			} else {
				absent = append(absent, id)
			}
		}
	}
	err := dataplane.NewFamilyError(failed, well)
	held := dataplane.Held(b.accepted, ours, err)
	if held == nil {
		return err
	}
	accepted := *held
	accepted.Ports = held.Ports.With(stay, absent)
	b.accepted = &accepted
	return errors.Join(err, dataplane.NewPartialError(refusals))
}

// refusal returns why a ServicePort cannot be programmed whatever else is wanted.
func (b *backend) refusal(p *dataplane.ServicePort) error {
	if b.Rests(p.ID.Family) || slices.Contains(b.Families(), p.ID.Family) {
		return nil
	}
	return errFamily
}

// result is what became of one family's Sync.
type result struct {
	family  *familyBackend
	refused refused
	err     error
}

// syncFamilies syncs the families alongside each other, but for those that rest. It
// waits for all of them: a family takes as long as it makes progress, and a command
// that hangs is stopped (restore.Commands). So a family whose program hangs holds the
// other one up once for restore's idleMost, and for a part of it at each later try, of
// which the Syncer makes few.
func (b *backend) syncFamilies(ctx context.Context, known bool, want *dataplane.Snapshot) []*result {
	var out []*result
	var wg sync.WaitGroup
	for _, f := range b.families {
		if b.Rests(f.family) {
			continue
		}
		r := &result{family: f}
		out = append(out, r)
		wg.Go(func() { r.refused, r.err = f.sync(ctx, known, want, b.accepted) })
	}
	wg.Wait()
	return out
}

// clearOthers removes what an earlier Switchyard wrote with the other variant, of the
// families that are served without it. It reports whether route_localnet was switched
// off with it.
func (b *backend) clearOthers(ctx context.Context) bool {
	on, _ := localnet.IsOn()
	b.others = slices.DeleteFunc(b.others, func(c *restore.Commands) bool {
		if !slices.ContainsFunc(b.families, func(f *familyBackend) bool { return f.family == c.Family && f.held != nil }) {
			return false
		}
		err := clean(ctx, c)
		if err != nil {
			b.watch.log.Warn("rules of the other iptables variant cannot be removed and are still in force", "variant", string(c.Variant), "family", c.Family.String(), "error", err)
		}
		return err == nil
	})
	still, _ := localnet.IsOn()
	return on && !still
}

// Observe reads the kernel back. It follows the chains from the hooks as a packet
// would, so that what nothing leads to is not seen, and compares all of them with what
// they should hold where that is known.
func (b *backend) Observe(ctx context.Context) (*dataplane.Observation, error) {
	o := &dataplane.Observation{Whole: true}
	for _, f := range b.families {
		if b.Rests(f.family) {
			continue
		}
		if err := f.observe(ctx, o); err != nil {
			return nil, fmt.Errorf("%s: %w", f.family, err)
		}
	}
	o.Sort()
	return o, nil
}

// Close frees what the process holds and leaves the rules in place.
func (b *backend) Close() error {
	if b.watch == nil { // open failed
		return b.lock.Close()
	}
	return errors.Join(b.watch.close(), b.lock.Close())
}

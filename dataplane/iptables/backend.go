package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/switchyard-io/switchyard/dataplane"
)

// backend programs both families side by side; what befalls one does not stop
// the other. It implements dataplane.Backend.
type backend struct {
	halves []*half
	others []*half // of the variant that is not in use, until it is known to be clear of us
	lock   *writeLock
	held   *dataplane.Snapshot // what the kernel holds as far as is known; nil: unknown since the start
	known  bool                // held is still true
}

var errFamily = errors.New("this address family is not programmed")

// Sync implements dataplane.Backend.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	unlock, err := b.lock.lock(ctx)
	if err != nil {
		b.known = false
		return err
	}
	defer unlock()
	err = b.sync(ctx, prev, want)
	if b.known && b.clearOthers(ctx) {
		// The other variant had switched on what we then found on.
		err = b.sync(ctx, nil, want)
	}
	return err
}

func (b *backend) sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	if prev != nil && !b.holds(prev) {
		prev = nil
	}
	work := b.divide(prev, want)
	b.known = false
	var wg sync.WaitGroup
	for _, w := range work {
		wg.Go(func() { w.run(ctx, prev == nil, want, b.heldPort) })
	}
	wg.Wait()
	bad := refused{}
	var errs []error
	for _, w := range work {
		if w.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w.family, w.err))
		}
		for id, err := range w.bad {
			bad[id] = err
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	b.keep(want, bad)
	return partial(bad)
}

// clearOthers removes what an earlier Switchyard wrote with the other variant,
// now that its rules are no longer needed. It tells whether
// route_localnet went with it.
func (b *backend) clearOthers(ctx context.Context) bool {
	on, _ := routesLocalnet()
	b.others = slices.DeleteFunc(b.others, func(h *half) bool {
		err := clean(ctx, h.commands, h.family)
		if err != nil {
			h.log.Warn("rules of the other iptables variant cannot be removed and are still in force", "variant", string(h.commands.variant), "error", err)
		}
		return err == nil
	})
	still, _ := routesLocalnet()
	return on && !still
}

// work is one family's share of a Sync.
type work struct {
	half    *half // nil: of a family that is not programmed
	family  dataplane.Family
	changes []change
	bad     refused
	err     error
}

func (w *work) run(ctx context.Context, full bool, want *dataplane.Snapshot, held func(dataplane.PortID) *dataplane.ServicePort) {
	switch {
	case w.half == nil:
		w.bad = refused{}
		for _, c := range w.changes {
			if c.new != nil {
				w.bad[c.id()] = errFamily
			}
		}
	case full:
		ports := make([]*dataplane.ServicePort, 0, len(w.changes))
		for _, c := range w.changes {
			ports = append(ports, c.new)
		}
		w.bad, w.err = w.half.full(ctx, want, ports, held)
	default:
		w.bad, w.err = w.half.step(ctx, want, w.changes)
	}
}

// divide sorts what changes by family.
func (b *backend) divide(prev, want *dataplane.Snapshot) []*work {
	var out []*work
	for _, h := range b.halves {
		out = append(out, &work{half: h, family: h.family})
	}
	to := func(c change) {
		i := slices.IndexFunc(out, func(w *work) bool { return w.family == c.id().Family })
		if i < 0 {
			i = len(out)
			out = append(out, &work{family: c.id().Family})
		}
		out[i].changes = append(out[i].changes, c)
	}
	if prev == nil {
		for p := range want.Ports.All() {
			to(change{new: p})
		}
		return out
	}
	pods := prev.Node != want.Node && !slices.EqualFunc(b.halves, b.halves, func(h, _ *half) bool {
		return slices.Equal(podMatches(prev.Node.LocalPods, h.family), podMatches(want.Node.LocalPods, h.family))
	})
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		to(change{old, cur})
	}
	if pods { // then those whose rules ask for pods are written anew
		for p := range want.Ports.All() {
			if prev.Ports.Get(p.ID) == p && slices.ContainsFunc(p.Frontends, hasInside) {
				to(change{p, p})
			}
		}
	}
	return out
}

func hasInside(f dataplane.Frontend) bool { return f.Inside != nil }

// holds tells whether the kernel is known to hold prev.
func (b *backend) holds(prev *dataplane.Snapshot) bool {
	if !b.known || slices.ContainsFunc(b.halves, func(h *half) bool { return h.model == nil }) || b.held.Node != prev.Node || !slices.Equal(b.held.ServiceCIDRs, prev.ServiceCIDRs) {
		return false
	}
	for range dataplane.Diff(b.held.Ports, prev.Ports) {
		return false
	}
	return true
}

func (b *backend) heldPort(id dataplane.PortID) *dataplane.ServicePort {
	if b.held == nil {
		return nil
	}
	return b.held.Ports.Get(id)
}

// keep notes what the kernel holds now.
func (b *backend) keep(want *dataplane.Snapshot, bad refused) {
	held := *want
	if len(bad) > 0 {
		var put []*dataplane.ServicePort
		var remove []dataplane.PortID
		for id, err := range bad {
			if old := b.heldPort(id); old != nil && !errors.Is(err, errGone) {
				put = append(put, old)
			} else {
				remove = append(remove, id)
			}
		}
		held.Ports = want.Ports.With(put, remove)
	}
	b.held, b.known = &held, true
}

// partial makes the error that tells of refused ServicePorts; nil: there are none.
func partial(bad refused) error {
	if len(bad) == 0 {
		return nil
	}
	e := &dataplane.PartialError{}
	for id, err := range bad {
		e.Failed = append(e.Failed, dataplane.PortError{ID: id, Err: err})
	}
	slices.SortFunc(e.Failed, func(a, b dataplane.PortError) int { return a.ID.Compare(b.ID) })
	return e
}

// Close implements dataplane.Backend. The rules stay.
func (b *backend) Close() error { return b.lock.close() }

package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// backend programs both families side by side; what befalls one does not stop
// the other. It implements dataplane.Backend.
type backend struct {
	dataplane.Resting
	halves []*half
	others []*half // of the variant that is not in use, until it is known to be clear of us
	lock   *writeLock
	watch  *watch
	held   *dataplane.Snapshot // what the kernel holds as far as is known; nil: unknown since the start
	known  bool                // held is still true

	otherMost time.Duration // see the constant

	noted atomic.Pointer[noted] // for Observe
}

// noted is what the last Sync left, for an Observe alongside the next one.
type noted struct {
	held   *dataplane.Snapshot
	halves []*half // those whose tables are known, with as much of them as drift needs
}

// note notes what a Sync left.
func (b *backend) note() {
	if !b.known {
		b.noted.Store(nil)
		return
	}
	n := &noted{held: b.held}
	for _, h := range b.halves {
		if h.model != nil {
			n.halves = append(n.halves, h.copy())
		}
	}
	b.noted.Store(n)
}

var errFamily = errors.New("this address family is not programmed")

// Traits say that iptables goes through all rules, and reads them alongside.
func (b *backend) Traits() dataplane.Traits {
	return dataplane.Traits{CostGrows: true, ObservesAlongside: true}
}

// Sync implements dataplane.Backend.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	defer b.note()
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
	defer b.watch.pause(prev == nil)()
	work := b.divide(prev, want)
	b.known = false
	b.runAll(ctx, work, want)
	bad := refused{}
	var failures []dataplane.FamilyFailure
	well := 0
	for _, w := range work {
		switch {
		case w.err != nil:
			failures = append(failures, dataplane.FamilyFailure{Family: w.family, Err: w.err})
		case w.half != nil:
			well++
			w.half.written.Store(true)
		}
		for id, err := range w.bad {
			bad[id] = err
		}
	}
	err := dataplane.NewFamilyError(failures, well)
	held := dataplane.Held(b.held, want, err)
	if held == nil {
		return err
	}
	b.keep(held, want, bad)
	return errors.Join(err, partial(bad))
}

const (
	// otherMost and otherTimes bound how long a family may take after the other one
	// is done: a command that hangs must not stop both. It is less than the time
	// after which the agent counts as stuck.
	otherMost  = 45 * time.Second
	otherTimes = 10
)

var errHangs = errors.New("it is not done long after the other family")

// runAll does each family's share side by side.
func (b *backend) runAll(ctx context.Context, work []*work, want *dataplane.Snapshot) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	var timer *time.Timer
	start := time.Now()
	for _, w := range work {
		wg.Go(func() {
			w.run(ctx, want, b.heldPort)
			if w.err != nil && errors.Is(context.Cause(ctx), errHangs) {
				w.err = fmt.Errorf("%w: %w", errHangs, w.err)
			}
			if w.half != nil && w.err == nil {
				once.Do(func() {
					timer = time.AfterFunc(max(b.otherMost, otherTimes*time.Since(start)), func() { cancel(errHangs) })
				})
			}
		})
	}
	wg.Wait()
	if timer != nil {
		timer.Stop()
	}
}

// clearOthers removes what an earlier Switchyard wrote with the other variant,
// now that its rules are no longer needed. It tells whether
// route_localnet went with it.
func (b *backend) clearOthers(ctx context.Context) bool {
	on, _ := routesLocalnet()
	b.others = slices.DeleteFunc(b.others, func(h *half) bool {
		if !b.serves(h.family) { // what the other variant has is all that there is
			return false
		}
		err := clean(ctx, h.commands, h.family)
		if err != nil {
			h.log.Warn("rules of the other iptables variant cannot be removed and are still in force", "variant", string(h.commands.variant), "error", err)
		}
		return err == nil
	})
	still, _ := routesLocalnet()
	return on && !still
}

// serves reports whether the tables of a family are as they should be.
func (b *backend) serves(f dataplane.Family) bool {
	return slices.ContainsFunc(b.halves, func(h *half) bool { return h.family == f && h.model != nil })
}

// work is one family's share of a Sync.
type work struct {
	full    bool  // the tables are read back; changes are all ServicePorts
	half    *half // nil: of a family that is not programmed
	family  dataplane.Family
	changes []change
	bad     refused
	err     error
}

func (w *work) run(ctx context.Context, want *dataplane.Snapshot, held func(dataplane.PortID) *dataplane.ServicePort) {
	switch {
	case w.half == nil:
		w.bad = refused{}
		for _, c := range w.changes {
			if c.new != nil {
				w.bad[c.id()] = errFamily
			}
		}
	case w.full:
		ports := make([]*dataplane.ServicePort, 0, len(w.changes))
		for _, c := range w.changes {
			ports = append(ports, c.new)
		}
		w.bad, w.err = w.half.full(ctx, want, ports, held)
	default:
		w.bad, w.err = w.half.step(ctx, want, w.changes)
	}
	if w.err != nil {
		w.half.model = nil
	}
}

// divide sorts what changes by family. Of one whose tables are unknown all of
// want is a change.
func (b *backend) divide(prev, want *dataplane.Snapshot) []*work {
	var out []*work
	unknown := prev == nil
	for _, h := range b.halves {
		if !b.Rests(h.family) {
			out = append(out, &work{half: h, family: h.family, full: prev == nil || h.model == nil})
			unknown = unknown || h.model == nil
		}
	}
	to := func(full bool, c change) {
		if b.Rests(c.id().Family) {
			return
		}
		i := slices.IndexFunc(out, func(w *work) bool { return w.family == c.id().Family })
		if i < 0 {
			i = len(out)
			out = append(out, &work{family: c.id().Family, full: prev == nil})
		}
		if out[i].full == full {
			out[i].changes = append(out[i].changes, c)
		}
	}
	if unknown {
		for p := range want.Ports.All() {
			to(true, change{new: p})
		}
	}
	if prev == nil {
		return out
	}
	pods := prev.Node != want.Node && !slices.EqualFunc(b.halves, b.halves, func(h, _ *half) bool {
		return slices.Equal(podMatches(prev.Node.LocalPods, h.family), podMatches(want.Node.LocalPods, h.family))
	})
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		to(false, change{old, cur})
	}
	if pods { // then those whose rules ask for pods are written anew
		for p := range want.Ports.All() {
			if prev.Ports.Get(p.ID) == p && slices.ContainsFunc(p.Frontends, hasInside) {
				to(false, change{p, p})
			}
		}
	}
	return out
}

func hasInside(f dataplane.Frontend) bool { return f.Inside != nil }

// holds tells whether the kernel is known to hold prev.
func (b *backend) holds(prev *dataplane.Snapshot) bool {
	if !b.known || b.held.Node != prev.Node || !slices.Equal(b.held.ServiceCIDRs, prev.ServiceCIDRs) {
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

// keep notes what the kernel holds now: what a Sync of want left, less what was refused.
func (b *backend) keep(left, want *dataplane.Snapshot, bad refused) {
	held := *left
	if len(bad) > 0 {
		var put []*dataplane.ServicePort
		var remove []dataplane.PortID
		for id, err := range bad {
			if old := dataplane.Fallback(b.heldPort(id), want.Ports.Get(id)); old != nil && !errors.Is(err, errGone) {
				put = append(put, old)
			} else {
				remove = append(remove, id)
			}
		}
		held.Ports = held.Ports.With(put, remove)
	}
	b.held, b.known = &held, true
}

// partial makes the error that tells of refused ServicePorts; nil: there are none.
func partial(bad refused) error {
	var failed []dataplane.PortError
	for id, err := range bad {
		failed = append(failed, dataplane.PortError{ID: id, Err: err})
	}
	return dataplane.NewPartialError(failed)
}

// Close implements dataplane.Backend. The rules stay.
func (b *backend) Close() error {
	if b.watch == nil { // open failed
		return b.lock.close()
	}
	return errors.Join(b.watch.close(), b.lock.close())
}

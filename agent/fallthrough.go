package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// Backends lists what this binary can program a kernel with. Tests have lists of
// their own.
type Backends struct {
	Drivers func(catalog.Options) []dataplane.Driver
	Layers  func(catalog.Options) []dataplane.Driver
}

// unfitError ends the parts of an agent whose backend cannot program this
// machine, so that they start again without it.
type unfitError struct {
	layer string
	err   error
}

func (e *unfitError) Error() string {
	return fmt.Sprintf("backend %s does not work here: %v", e.layer, e.err)
}
func (e *unfitError) Unwrap() error { return e.err }

// backendOptions returns what each backend is told, and which layers proved unfit.
func (a *Agent) backendOptions() catalog.Options {
	o := a.config.Backends()
	o.Unfit = maps.Clone(a.unfit)
	return o
}

// judge notes whether a first Sync failed for a reason that no later try mends.
// It must not block.
func (a *Agent) judge(r dataplane.SyncReport) {
	a.served = a.served || r.InForce != nil
	if a.served || r.Err == nil || !catalog.OfMachine(r.Err) {
		return
	}
	fault := &unfitError{layer: a.choice.LayerOf(r.Err), err: fmt.Errorf("its first Sync failed: %w", r.Err)}
	select {
	case a.faults <- fault:
	default:
	}
}

// fallThrough ends the parts once the backend proves unfit and another one of
// those that were asked for works here. Without one, the backend goes on trying.
func (a *Agent) fallThrough(ctx context.Context) error {
	var fault *unfitError
	select {
	case <-ctx.Done():
		return nil
	case <-a.forwarding:
		return nil
	case fault = <-a.faults:
	}
	if !a.hasAnother(ctx, fault) {
		return nil
	}
	select {
	case <-a.forwarding: // meanwhile it succeeded
		return nil
	default:
		return fault
	}
}

// hasAnother reports whether another backend works here, without the layer that
// proved unfit.
func (a *Agent) hasAnother(ctx context.Context, fault *unfitError) bool {
	if !slices.Contains(a.choice.Layers, fault.layer) || a.unfit[fault.layer] != nil { // another backend would fail likewise
		return false
	}
	o := a.backendOptions()
	if o.Unfit == nil {
		o.Unfit = map[string]error{}
	}
	o.Unfit[fault.layer] = fault.err
	err := catalog.Check(ctx, a.config.Backend(), a.backends.Drivers(o), a.config.Dataplane(slog.New(slog.DiscardHandler), a.families))
	if err != nil {
		a.log.Warn("no other backend works here; trying this one again", "backend", a.backend, "error", err)
	}
	return err == nil
}

// passOver starts all parts again without the layer that proved unfit.
func (a *Agent) passOver(fault *unfitError) {
	a.log.Warn("backend cannot program this machine; passing it over", "backend", a.backend, "layer", fault.layer, "error", fault.err)
	if a.unfit == nil {
		a.unfit = map[string]error{}
	}
	a.unfit[fault.layer] = fault.err
}

// Run runs the agent until ctx ends or it cannot go on.
func (a *Agent) Run(ctx context.Context) error {
	release := func() {}
	defer func() { release() }()
	a.lockOnce = func(ctx context.Context) error {
		r, err := a.lock(ctx)
		if err == nil {
			release, a.lockOnce = r, func(context.Context) error { return nil }
		}
		return err
	}
	for {
		a.programmed, a.served = false, false
		a.forwarding, a.faults, a.started = make(chan struct{}), make(chan *unfitError, 1), time.Now()
		err := a.once(ctx)
		if !startsAgain(err) {
			return err
		}
		if fault := (*unfitError)(nil); errors.As(err, &fault) {
			a.passOver(fault)
		}
	}
}

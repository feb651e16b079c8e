package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// leftTrouble comes before the error that keeps sockets from being translated.
const leftTrouble = "sockets are left to packets, because they cannot be translated: "

// accelerated is a packet backend with sockets on top.
type accelerated struct {
	dataplane.Backend // the packet backend
	name              string
	sockets           *sockets // nil: Off
	opts              Options
	log               *slog.Logger
	families          []dataplane.Family     // that were asked for
	trouble           atomic.Pointer[string] // what keeps sockets from being translated; nil: nothing
	lookout           *lookout               // nil: Off
	removed           bool                   // the sockets' layer of an earlier agent, where ours is Off
}

// Families implements dataplane.Familied: those of the packet backend.
func (a *accelerated) Families() []dataplane.Family {
	return dataplane.FamiliesOf(a.Backend, a.families)
}

// Layers implements dataplane.Layered.
func (a *accelerated) Layers() []string {
	if a.sockets == nil {
		return []string{a.name}
	}
	return []string{LayerName, a.name}
}

// Sync implements dataplane.Backend. The sockets stop translating to what goes,
// then the packet backend serves what is wanted, then the sockets translate to
// it. So sockets never translate to what the packet backend would not serve as
// well, and may be left to it at any time: if only the sockets fail, the Sync is
// what the packet backend made of it.
func (a *accelerated) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	if a.sockets == nil {
		return a.syncWithout(ctx, prev, want)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	session, socketsErr, asideErr := a.beginSockets(prev, want)
	err := a.Backend.Sync(ctx, prev, want)
	a.sockets.mu.Lock()
	defer a.sockets.mu.Unlock()
	partial, failed, ok := dataplane.IsPartial(err)
	if err != nil && !ok {
		a.sockets.held.ports = nil // they were changed half
		return err
	}
	if socketsErr == nil {
		if socketsErr = session.finish(unserved(prev, want, partial, failed)); socketsErr != nil {
			asideErr = a.sockets.stepAside()
		}
	}
	a.note(socketsErr)
	a.lookout.look(a.sockets.programs.Expect())
	if asideErr != nil {
		return &dataplane.LayerError{Layer: LayerName, Err: fmt.Errorf("sockets go on by what the maps hold, which may be out of date: %w", errors.Join(socketsErr, asideErr))}
	}
	return err
}

// beginSockets begins a session, or leaves sockets to packets if it cannot.
func (a *accelerated) beginSockets(prev, want *dataplane.Snapshot) (s *session, err, asideErr error) {
	a.sockets.mu.Lock()
	defer a.sockets.mu.Unlock()
	if s, err = a.sockets.begin(prev, want); err != nil {
		asideErr = a.sockets.stepAside()
	}
	return s, err, asideErr
}

// unserved returns the ServicePorts that the packet backend did not take: those that
// it refused, and all that changed in the families that failed.
func unserved(prev, want *dataplane.Snapshot, partial *dataplane.PartialError, failed *dataplane.FamilyError) []dataplane.PortError {
	var out []dataplane.PortError
	if partial != nil {
		for _, f := range partial.Failed {
			if !failed.Has(f.ID.Family) {
				out = append(out, f)
			}
		}
	}
	if failed == nil {
		return out
	}
	var before dataplane.Ports
	if prev != nil {
		before = prev.Ports
	}
	for old, cur := range dataplane.Diff(before, want.Ports) {
		if id := idOf(old, cur); failed.Has(id.Family) {
			out = append(out, dataplane.PortError{ID: id, Err: failed})
		}
	}
	return out
}

// Traits returns those of the packet backend. The sockets' layer can be read alongside
// and costs what changes.
func (a *accelerated) Traits() dataplane.Traits { return dataplane.TraitsOf(a.Backend) }

// Hold implements dataplane.FamilyHolder.
func (a *accelerated) Hold(families []dataplane.Family) {
	if h, ok := a.Backend.(dataplane.FamilyHolder); ok {
		h.Hold(families)
	}
}

// note remembers what keeps sockets from being translated; nil: nothing.
func (a *accelerated) note(err error) {
	if err == nil {
		a.trouble.Store(nil)
		return
	}
	a.log.Warn("sockets are left to packets until a later Sync succeeds", "backend", a.name, "error", err)
	what := err.Error()
	a.trouble.Store(&what)
}

// syncWithout is Sync where sockets are Off. What an earlier agent left of them
// goes once the packet backend serves. As long as it cannot be removed, each Sync
// tries again.
func (a *accelerated) syncWithout(ctx context.Context, prev, want *dataplane.Snapshot) error {
	err := a.Backend.Sync(ctx, prev, want)
	_, failed, ok := dataplane.IsPartial(err)
	if a.removed || failed != nil || err != nil && !ok {
		return err
	}
	cleanErr := programs.RemoveLeft(a.opts.PinDir)
	if a.removed = cleanErr == nil; !a.removed {
		return &dataplane.LayerError{Layer: LayerName, Err: fmt.Errorf("removing the translation of sockets: %w", cleanErr)}
	}
	return err
}

// Observe implements dataplane.Backend: what the packet backend forwards, and
// where the sockets' layer is not as it was left.
func (a *accelerated) Observe(ctx context.Context) (*dataplane.Observation, error) {
	o, err := a.Backend.Observe(ctx)
	if err != nil || a.sockets == nil {
		return o, err
	}
	differs, whole, err := a.sockets.observe()
	if err != nil {
		return nil, err
	}
	if what := a.trouble.Load(); what != nil {
		o.Other = append(o.Other, LayerName+": "+leftTrouble+*what)
	}
	for _, d := range differs {
		o.Other = append(o.Other, LayerName+": "+d)
	}
	o.Whole = o.Whole && whole
	return o, nil
}

// Close implements dataplane.Backend.
func (a *accelerated) Close() error {
	if a.sockets == nil {
		return a.Backend.Close()
	}
	a.lookout.close()
	return errors.Join(a.sockets.close(), a.Backend.Close())
}

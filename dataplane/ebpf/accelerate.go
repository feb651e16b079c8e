package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
)

// LayerName is the name of the sockets' layer of an accelerated backend.
const LayerName = "sockets"

// Layer is the sockets' layer by itself, to be cleaned up. It opens no Backend:
// without a packet backend there is nothing to accelerate.
func Layer(o Options) dataplane.Driver {
	o = o.withDefaults()
	return dataplane.Driver{
		Name:    LayerName,
		OnTop:   true,
		Find:    func(context.Context) ([]string, error) { return find(o) },
		Cleanup: func(context.Context, dataplane.Config) error { return cleanup(o) },
	}
}

// Accelerate is a Driver whose Backend is that of the first of bases which works
// here, and that translates sockets on top of it. The base serves everything.
// It programs the network namespace of this process and the sockets of a cgroup.
func Accelerate(name string, o Options, bases ...dataplane.Driver) dataplane.Driver {
	o = o.withDefaults()
	a := accelerator{opts: o, bases: bases}
	d := dataplane.Driver{
		Name: name, Layers: []string{LayerName}, TranslatesSockets: o.SocketLB != Off,
		Probe: a.probe, Open: a.open, Cleanup: a.cleanup, Needs: needs(o),
	}
	if len(bases) == 1 { // of several, one will do
		d.Needs = append(d.Needs, bases[0].Needs...)
	}
	for _, base := range bases {
		d.Layers = append(d.Layers, base.Name)
		d.OwnsConnections = d.OwnsConnections || base.OwnsConnections
	}
	return d
}

// WithoutSockets is a packet backend's Driver. Once its Backend serves, it removes
// the sockets' layer that an earlier agent left: nobody would update it.
func WithoutSockets(o Options, base dataplane.Driver) dataplane.Driver {
	o = o.withDefaults()
	open := base.Open
	base.Open = func(ctx context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
		b, err := open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return &accelerated{Backend: b, name: base.Name, opts: o, log: cfg.Log, families: cfg.Families}, nil
	}
	return base
}

// accelerator makes accelerated backends.
type accelerator struct {
	opts  Options
	bases []dataplane.Driver
}

func (a accelerator) probe(ctx context.Context, cfg dataplane.Config) error {
	if a.opts.SocketLB != Off {
		if err := probe(a.opts, cfg); err != nil {
			return err
		}
	}
	var errs []error
	for _, base := range a.bases {
		err := base.Works(ctx, cfg)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("backend %s: %w", base.Name, err))
	}
	return fmt.Errorf("no packet backend works here: %w", errors.Join(errs...))
}

func (a accelerator) open(ctx context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
	b := &accelerated{log: cfg.Log, opts: a.opts, families: cfg.Families}
	if a.opts.SocketLB != Off {
		s, err := openSockets(a.opts, cfg)
		if err != nil {
			return nil, err
		}
		b.sockets = s
	}
	var errs []error
	for _, base := range a.bases {
		opened, err := base.Open(ctx, cfg)
		if err != nil {
			cfg.Log.Info("packet backend passed over", "backend", base.Name, "reason", err)
			errs = append(errs, fmt.Errorf("backend %s: %w", base.Name, err))
			continue
		}
		b.Backend, b.name = opened, base.Name
		if b.sockets != nil {
			b.sockets.base = base.Name
			b.lookout = startLookout(disturbances(opened))
		}
		cfg.Log.Info("sockets are translated on top of a packet backend", "socketLB", a.opts.SocketLB, "backend", base.Name)
		return b, nil
	}
	err := fmt.Errorf("no packet backend works here: %w", errors.Join(errs...))
	if b.sockets != nil {
		err = errors.Join(err, b.sockets.close())
	}
	return nil, err
}

// cleanup removes the sockets' layer first: what it translated to is served by
// the packet backend as long as that is there.
func (a accelerator) cleanup(ctx context.Context, cfg dataplane.Config) error {
	errs := []error{cleanup(a.opts)}
	for _, base := range a.bases {
		errs = append(errs, base.Cleanup(ctx, cfg))
	}
	return errors.Join(errs...)
}

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
		a.sockets.records = nil // they were changed half
		return err
	}
	if socketsErr == nil {
		if socketsErr = session.finish(unserved(prev, want, partial, failed)); socketsErr != nil {
			asideErr = a.sockets.stepAside()
		}
	}
	a.note(socketsErr)
	a.lookout.look(a.sockets.expect())
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

// Traits are those of the packet backend. The sockets' layer can be read alongside
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
	cleanErr := removeLeft(a.opts)
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

// Disturbed implements dataplane.Watched: what the packet backend notices, and
// hooks that were detached. Nobody tells of a change to eBPF maps. nil: nothing is
// noticed.
func (a *accelerated) Disturbed() <-chan struct{} {
	if a.lookout != nil {
		return a.lookout.disturbed
	}
	return disturbances(a.Backend)
}

func disturbances(b dataplane.Backend) <-chan struct{} {
	if w, ok := b.(dataplane.Watched); ok {
		return w.Disturbed()
	}
	return nil
}

// Undisturbed implements dataplane.Watched. If nobody changed what the packet
// backend wrote, just the socket maps are compared: they take a fraction of the
// time.
func (a *accelerated) Undisturbed() bool {
	w, ok := a.Backend.(dataplane.Watched)
	if !ok || !w.Undisturbed() {
		return false
	}
	if a.sockets == nil {
		return true
	}
	differs, whole, err := a.sockets.observe()
	return err == nil && whole && len(differs) == 0
}

// observe lists where hooks and maps are not as they were left, and tells
// whether that is known of all of them.
func (b *sockets) observe() (differs []string, whole bool, err error) {
	b.mu.Lock()
	differs = problems(b.checkAttached())
	known := b.records != nil
	b.mu.Unlock()
	if !known {
		return differs, false, nil
	}
	if b.reading != nil {
		b.reading()
	}
	held, err := b.readBack() // a Sync may go on
	if err != nil {
		return nil, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.records == nil {
		return differs, false, nil
	}
	drift, err := b.drift(held)
	return append(differs, drift...), err == nil, err
}

// Close implements dataplane.Backend.
func (a *accelerated) Close() error {
	if a.sockets == nil {
		return a.Backend.Close()
	}
	a.lookout.close()
	return errors.Join(a.sockets.close(), a.Backend.Close())
}

// Counts are those of the sockets' layer and of the packet backend.
func (a *accelerated) Counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	var errs []error
	if a.sockets != nil {
		counts, err := a.sockets.counts()
		aside := 0.0
		if a.trouble.Load() != nil {
			aside = 1
		}
		counts = append(counts, dataplane.Count{
			Name: "switchyard_sockets_aside", Help: "1 while all sockets are left to the packet backend, because their maps or hooks could not be written.", Value: aside,
		})
		out, errs = append(out, counts...), append(errs, err)
	}
	if b, ok := a.Backend.(dataplane.Counter); ok {
		counts, err := b.Counts()
		out, errs = append(out, counts...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

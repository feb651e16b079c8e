package ebpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
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
		Find:    func(context.Context) ([]string, error) { return programs.Find(o.PinDir) },
		Cleanup: func(context.Context, dataplane.Config) error { return programs.Cleanup(o.PinDir) },
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
	errs := []error{programs.Cleanup(a.opts.PinDir)}
	for _, base := range a.bases {
		errs = append(errs, base.Cleanup(ctx, cfg))
	}
	return errors.Join(errs...)
}

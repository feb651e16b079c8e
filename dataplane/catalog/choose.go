package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// Auto is the name that stands for the first backend which works here.
const Auto = "auto"

// Choice is the backend that was chosen, open, and why.
type Choice struct {
	dataplane.Driver
	Backend    dataplane.Backend
	Asked      string // the name that was asked for
	PassedOver []PassedOver
	Layers     []string // what the backend consists of, by name; see Layers
}

// PassedOver is a backend that is preferred to the one chosen, and why it does
// not work here.
type PassedOver struct {
	Name   string
	Reason error
}

// NamesPassedOver returns the backends that were passed over.
func (c Choice) NamesPassedOver() []string {
	var names []string
	for _, p := range c.PassedOver {
		names = append(names, p.Name)
	}
	return names
}

// Choose opens the backend of a name. For Auto it takes the first of drivers
// that works here, and tells why it passed over those before. Only if none does so
// for all address families, one that does for some is taken.
func Choose(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) (Choice, error) {
	all, err := choose(ctx, name, drivers, cfg)
	if err == nil || len(cfg.Families) < 2 {
		return all, err
	}
	cfg.SomeFamilies = true
	if some, failed := choose(ctx, name, drivers, cfg); failed == nil {
		return some, nil
	}
	return Choice{}, err
}

func choose(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) (Choice, error) {
	choice := Choice{Asked: name}
	var passed []error
	for _, d := range drivers {
		if name != Auto && name != d.Name {
			continue
		}
		backend, err := open(ctx, d, cfg)
		if err == nil {
			cfg.Log.Info("backend chosen", "backend", d.Name, "asked", name)
			warnOfBridges(cfg.Log, sysctl.Proc, cfg.Families)
			choice.Driver, choice.Backend, choice.Layers = d, backend, []string{d.Name}
			if l, ok := backend.(dataplane.Layered); ok {
				choice.Layers = l.Layers()
			}
			return choice, nil
		}
		choice.PassedOver = append(choice.PassedOver, PassedOver{d.Name, err})
		err = fmt.Errorf("backend %s: %w", d.Name, err)
		if name == d.Name {
			return Choice{}, err
		}
		cfg.Log.Info("backend passed over", "backend", d.Name, "reason", err)
		passed = append(passed, err)
	}
	if name != Auto {
		return Choice{}, fmt.Errorf("there is no backend %q; there is %s", name, strings.Join(Names(drivers), ", "))
	}
	return Choice{}, fmt.Errorf("no backend works here: %w", errors.Join(passed...))
}

// open opens a backend that works here.
func open(ctx context.Context, d dataplane.Driver, cfg dataplane.Config) (dataplane.Backend, error) {
	if !d.OpenProbes {
		quiet := cfg
		quiet.Log = slog.New(slog.DiscardHandler) // Open says it again
		if err := d.Probe(ctx, quiet); err != nil {
			return nil, err
		}
	}
	backend, err := d.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening it: %w", err)
	}
	return backend, nil
}

// Names is what --backend takes.
func Names(drivers []dataplane.Driver) []string {
	names := []string{Auto}
	for _, d := range drivers {
		names = append(names, d.Name)
	}
	return names
}

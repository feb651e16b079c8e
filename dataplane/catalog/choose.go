package catalog

import (
	"context"
	"errors"
	"fmt"
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
	Lacking    error    // why not all address families are programmed; nil: all are
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
// that works here, and logs why it passed over those before.
func Choose(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) (Choice, error) {
	choice := Choice{Asked: name}
	var err error
	choice.Driver, choice.PassedOver, choice.Lacking, err = first(name, drivers, cfg, func(d dataplane.Driver, cfg dataplane.Config) (err error) {
		choice.Backend, err = d.Open(ctx, cfg)
		return err
	})
	if err != nil {
		return Choice{}, err
	}
	cfg.Log.Info("backend chosen", "backend", choice.Name, "asked", name)
	warnOfBridges(cfg.Log, sysctl.Proc, cfg.Families)
	choice.Layers = []string{choice.Name}
	if l, ok := choice.Backend.(dataplane.Layered); ok {
		choice.Layers = l.Layers()
	}
	return choice, nil
}

// Check returns nil if Choose would find a backend of a name that works here, or
// why not. It changes nothing.
func Check(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) error {
	_, _, _, err := first(name, drivers, cfg, func(d dataplane.Driver, cfg dataplane.Config) error { return d.Works(ctx, cfg) })
	return err
}

// first returns the first of the drivers of a name for which try succeeds, and those
// before it. Only if none does so for all address families, it returns one that does
// for some, and why none does for all.
func first(name string, drivers []dataplane.Driver, cfg dataplane.Config, try func(dataplane.Driver, dataplane.Config) error) (
	d dataplane.Driver, passed []PassedOver, lacking, err error,
) {
	d, passed, err = walk(name, drivers, cfg, try)
	if err == nil || len(cfg.Families) < 2 {
		return d, passed, nil, err
	}
	cfg.SomeFamilies = true
	if d, passed, failed := walk(name, drivers, cfg, try); failed == nil {
		return d, passed, err, nil
	}
	return dataplane.Driver{}, nil, nil, err
}

func walk(name string, drivers []dataplane.Driver, cfg dataplane.Config, try func(dataplane.Driver, dataplane.Config) error) (dataplane.Driver, []PassedOver, error) {
	var passed []PassedOver
	var errs []error
	for _, d := range drivers {
		if name != Auto && name != d.Name {
			continue
		}
		err := try(d, cfg)
		if err == nil {
			return d, passed, nil
		}
		passed = append(passed, PassedOver{d.Name, err})
		err = fmt.Errorf("backend %s: %w", d.Name, err)
		if name == d.Name {
			return dataplane.Driver{}, nil, err
		}
		cfg.Log.Info("backend passed over", "backend", d.Name, "reason", err)
		errs = append(errs, err)
	}
	if name != Auto {
		return dataplane.Driver{}, nil, fmt.Errorf("there is no backend %q; there is %s", name, strings.Join(Names(drivers), ", "))
	}
	return dataplane.Driver{}, nil, fmt.Errorf("no backend works here: %w", errors.Join(errs...))
}

// Names is what --backend takes.
func Names(drivers []dataplane.Driver) []string {
	names := []string{Auto}
	for _, d := range drivers {
		names = append(names, d.Name)
	}
	return names
}

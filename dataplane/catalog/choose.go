package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Auto is the name that stands for the first backend which works here.
const Auto = "auto"

// Choice is the backend that was chosen, and why.
type Choice struct {
	dataplane.Driver
	Asked      string // the name that was asked for
	PassedOver []PassedOver
}

// PassedOver is a backend that is preferred to the one chosen, and why it does
// not work here.
type PassedOver struct {
	Name   string
	Reason error
}

// Choose finds the backend of a name and probes it. For Auto it takes the
// first of drivers whose probe passes, and tells why it passed over those
// before.
func Choose(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) (Choice, error) {
	choice := Choice{Asked: name}
	var passed []error
	for _, d := range drivers {
		if name != Auto && name != d.Name {
			continue
		}
		err := d.Probe(ctx, cfg)
		if err == nil {
			cfg.Log.Info("backend chosen", "backend", d.Name, "asked", name)
			choice.Driver = d
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

// Names is what --backend takes.
func Names(drivers []dataplane.Driver) []string {
	names := []string{Auto}
	for _, d := range drivers {
		names = append(names, d.Name)
	}
	return names
}

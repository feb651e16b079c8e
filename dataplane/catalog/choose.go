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

// Choose finds the backend of a name and probes it. For Auto it takes the
// first of drivers whose probe passes, and logs why it passed over those
// before.
func Choose(ctx context.Context, name string, drivers []dataplane.Driver, cfg dataplane.Config) (dataplane.Driver, error) {
	var passed []error
	for _, d := range drivers {
		if name != Auto && name != d.Name {
			continue
		}
		err := d.Probe(ctx, cfg)
		if err == nil {
			cfg.Log.Info("backend chosen", "backend", d.Name, "asked", name)
			return d, nil
		}
		err = fmt.Errorf("backend %s: %w", d.Name, err)
		if name == d.Name {
			return dataplane.Driver{}, err
		}
		cfg.Log.Info("backend passed over", "backend", d.Name, "reason", err)
		passed = append(passed, err)
	}
	if name != Auto {
		return dataplane.Driver{}, fmt.Errorf("there is no backend %q; there is %s", name, strings.Join(Names(drivers), ", "))
	}
	return dataplane.Driver{}, fmt.Errorf("no backend works here: %w", errors.Join(passed...))
}

// Names is what --backend takes.
func Names(drivers []dataplane.Driver) []string {
	names := []string{Auto}
	for _, d := range drivers {
		names = append(names, d.Name)
	}
	return names
}

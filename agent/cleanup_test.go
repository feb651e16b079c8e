package agent

import (
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// TestCleanupBeginsOnTop: whatever backend is cleaned up, what may be on top of it goes
// first, the translation of sockets before all.
func TestCleanupBeginsOnTop(t *testing.T) {
	c := config.Default()
	drivers := catalog.Drivers(c.Backends())
	for _, backend := range NewOptions().Backends {
		layers := layersOf(c, backend)
		if got, want := layers[0].Name, catalog.Layers(c.Backends())[0].Name; got != want {
			t.Errorf("--backend=%s: cleanup begins with %s, want %s", backend, got, want)
		}
		below := slices.IndexFunc(layers, func(d dataplane.Driver) bool { return !d.OnTop })
		if slices.ContainsFunc(layers[below:], func(d dataplane.Driver) bool { return d.OnTop }) {
			t.Errorf("--backend=%s: what is on top is removed late: %q", backend, catalog.Names(layers)[1:])
		}
		one := slices.ContainsFunc(drivers, func(d dataplane.Driver) bool { return d.Name == backend && len(d.Layers) == 0 })
		if rest := layers[below:]; one && (len(rest) != 1 || rest[0].Name != backend) {
			t.Errorf("--backend=%s: cleanup removes %q", backend, catalog.Names(layers)[1:])
		}
	}
}

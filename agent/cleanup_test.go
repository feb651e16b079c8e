package agent

import (
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/hostfirewall"
)

// TestCleanupBeginsWithSockets: whatever backend is cleaned up, the translation of
// sockets on top of it goes first.
func TestCleanupBeginsWithSockets(t *testing.T) {
	c := config.Default()
	for _, backend := range NewOptions().Backends {
		layers := catalog.Names(layersOf(c, backend))[1:] // without "auto"
		if layers[0] != ebpf.LayerName {
			t.Errorf("--backend=%s: cleanup begins with %s", backend, layers[0])
		}
		if backend != catalog.Auto && backend != "ebpf" && !slices.Equal(layers, []string{ebpf.LayerName, hostfirewall.LayerName, backend}) {
			t.Errorf("--backend=%s: cleanup removes %q", backend, layers)
		}
	}
}

package catalog

import (
	"fmt"
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
)

// TestLayers: whatever a backend may put into a kernel can be cleaned up by
// itself, and --socket-lb puts sockets on top of every backend.
func TestLayers(t *testing.T) {
	for _, mode := range []ebpf.SocketLB{"", ebpf.Off, ebpf.Auto, ebpf.Node} {
		o := Options{EBPF: ebpf.Options{SocketLB: mode}}
		layers := Layers(o)
		for _, d := range Drivers(o) {
			names := d.Layers
			if len(names) == 0 {
				names = []string{d.Name}
			}
			for _, name := range names {
				if !slices.ContainsFunc(layers, func(l dataplane.Driver) bool { return l.Name == name && l.Cleanup != nil }) {
					t.Errorf("nothing cleans up %s of backend %s", name, d.Name)
				}
			}
			accelerated := slices.Contains(names, ebpf.LayerName)
			if want := d.Name == nameEBPF || mode != "" && mode != ebpf.Off; accelerated != want {
				t.Errorf("--socket-lb=%s: backend %s has the layers %s", mode, d.Name, fmt.Sprint(names))
			}
		}
	}
}

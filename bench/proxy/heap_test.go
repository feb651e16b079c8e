package proxy

import (
	"testing"

	"github.com/google/pprof/profile"
)

// TestHeapOf: memory belongs to the innermost function that says whose it is.
func TestHeapOf(t *testing.T) {
	const module = "github.com/switchyard-io/switchyard/"
	for _, c := range []struct {
		name  string
		stack []string // innermost first
		part  func(Heap) float64
	}{
		{"a decoded string", []string{"strings.Clone", "k8s.io/api/discovery/v1.(*EndpointSlice).Unmarshal", module + "watcher/kube.(*Source).Run"}, func(h Heap) float64 { return h.Facts }},
		{"a Service that is kept", []string{module + "watcher.(*Watcher).service", module + "watcher.(*Watcher).Apply"}, func(h Heap) float64 { return h.Facts }},
		{"a pool", []string{module + "watcher/policy.Ports", module + "watcher.(*Watcher).rebuild"}, func(h Heap) float64 { return h.Snapshot }},
		{"the tree of ports", []string{module + "dataplane.MakePorts", module + "watcher.(*Watcher).build"}, func(h Heap) float64 { return h.Snapshot }},
		{"an index of a backend", []string{"slices.Clone[...]", module + "dataplane/nftables.(*Backend).Sync", module + "dataplane.(*Syncer).Run"}, func(h Heap) float64 { return h.Backend }},
		{"a metric", []string{"github.com/prometheus/client_golang/prometheus.NewRegistry", module + "agent/status.NewMetrics"}, func(h Heap) float64 { return h.Others }},
	} {
		s := &profile.Sample{Value: []int64{1, 7}}
		for _, f := range c.stack {
			s.Location = append(s.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: f}}}})
		}
		h := heapOf(&profile.Profile{SampleType: []*profile.ValueType{{Type: "inuse_objects"}, {Type: "inuse_space"}}, Sample: []*profile.Sample{s}})
		if c.part(h) != 7 || h.Sum() != 7 {
			t.Errorf("%s: %+v", c.name, h)
		}
	}
}

// TestBlocks: endpoints of different blocks and of Many differ.
func TestBlocks(t *testing.T) {
	seen := map[string]bool{}
	all := append(Many(5001), Block(FirstBlock, 100)...)
	for _, e := range append(all, Block(LastBlock, 100)...) {
		a := e.Addrs[0].String()
		if seen[a] {
			t.Errorf("%s is there twice", a)
		}
		seen[a] = true
	}
	if a := Block(200, 1)[0].Addrs[0].String(); a != "10.40.200.1" {
		t.Errorf("the first address of block 200 is %s", a)
	}
}

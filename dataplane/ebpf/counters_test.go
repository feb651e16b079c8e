package ebpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// TestEveryCounterHasAWord: no counter of bpf/stats.h is left out.
func TestEveryCounterHasAWord(t *testing.T) {
	spec, err := programs.LoadSock()
	if err != nil {
		t.Fatal(err)
	}
	var stats *btf.Enum
	if err := spec.Types.TypeByName("stat", &stats); err != nil {
		t.Fatal(err)
	}
	for _, v := range stats.Values {
		if events()[programs.SockStat(v.Value)] == "" {
			t.Errorf("%s has no word", v.Name)
		}
	}
}

// TestCounts: what sockets did, and how full the maps are. Counters outlive an
// agent, so that they may start anywhere.
func TestCounts(t *testing.T) {
	b := openBackend(t, testOptions(t))
	counted := func() map[string]float64 {
		all, err := b.Counts()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, c := range all {
			name := c.Name
			for _, l := range c.Labels {
				name += " " + l.Value
			}
			out[name] = c.Value
		}
		return out
	}
	mustSync(t, b, nil, snapshot(
		portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:8080", "10.40.1.2:8080"))),
		portOf("none", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.2:53", poolOf())),
	))
	before := counted()
	for range 3 {
		if _, err := connectFrom(t, b, onNode, netip.MustParseAddrPort("10.96.0.1:53")); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = connectFrom(t, b, onNode, netip.MustParseAddrPort("10.96.0.2:53")) // left to packets
	after := counted()
	if got := after["switchyard_ebpf_events_total socket_connect"] - before["switchyard_ebpf_events_total socket_connect"]; got != 3 {
		t.Errorf("%v sockets connected, want 3", got)
	}
	for name, want := range map[string]float64{"frontends": 2, "services": 2, "endpoints": 2} {
		if got := after["switchyard_map_entries "+name]; got != want {
			t.Errorf("%s: %v entries, want %v", name, got, want)
		}
		if after["switchyard_map_capacity "+name] < 64 {
			t.Errorf("%s: room for %v", name, after["switchyard_map_capacity "+name])
		}
	}
}

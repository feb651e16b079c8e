package ipvs

import (
	"net/netip"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestRebinds: a new address on the node costs a full pass only if a Service has it.
func TestRebinds(t *testing.T) {
	prefixes := func(words ...string) (out []netip.Prefix) {
		for _, w := range words {
			out = append(out, netip.MustParsePrefix(w))
		}
		return out
	}
	ports := snapshotOf(port("web", frontend(dataplane.ClusterIP, "10.96.0.10:80", pool(), dataplane.SNATNone), frontend(dataplane.NodePort, "0.0.0.0:30080", pool(), dataplane.SNATNone))).Ports
	for _, tc := range []struct {
		name          string
		before, after []netip.Prefix
		want          bool
	}{
		{"the same", prefixes("192.0.2.1/32"), prefixes("192.0.2.1/32"), false},
		{"another of no Service", prefixes("192.0.2.1/32"), prefixes("192.0.2.1/32", "192.0.2.2/32"), false},
		{"a ClusterIP comes", nil, prefixes("10.96.0.10/32"), true},
		{"a ClusterIP goes", prefixes("10.96.0.10/32"), nil, true},
		{"a range around it", nil, prefixes("10.96.0.0/24"), false},
	} {
		after, before := node{bound: tc.after}, node{bound: tc.before}
		if got := after.rebinds(&before, ports); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

package iptables

import (
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
)

// tally counts what one family writes, for other goroutines to read.
type tally struct {
	partial bool // the Sync that goes on writes just what changed; of that goroutine alone

	written                   atomic.Uint64 // rules
	failures, partialFailures atomic.Uint64 // of iptables-restore
}

func (t *tally) failed() {
	t.failures.Add(1)
	if t.partial {
		t.partialFailures.Add(1)
	}
}

// Counts are kube-proxy's of its iptables mode, but for its numbers of
// rules by table: nothing here goes through all rules.
func (b *backend) Counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	for _, h := range b.halves {
		for _, c := range []struct {
			name, help string
			grows      bool
			value      uint64
		}{
			{"kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Calls of iptables-restore that failed.", true, h.tally.failures.Load()},
			{"kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "Calls of iptables-restore that failed, with just what changed.", true, h.tally.partialFailures.Load()},
			{"switchyard_iptables_rules_written_total", "Rules written.", true, h.tally.written.Load()},
		} {
			labels := []dataplane.Label{{Name: "ip_family", Value: h.family.String()}}
			out = append(out, dataplane.Count{Name: c.name, Help: c.help, Grows: c.grows, Labels: labels, Value: float64(c.value)})
		}
	}
	return out, nil
}

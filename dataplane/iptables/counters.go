package iptables

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// counts count what one family writes, for other goroutines to read.
type counts struct {
	written                   atomic.Uint64 // rules
	failures, partialFailures atomic.Uint64 // of iptables-restore
	rules                     ruleCounts
}

// ruleCounts counts the rules of ours in the tables, without reading them.
type ruleCounts struct {
	mu          sync.Mutex
	chains      map[string]map[string]int // by table
	total, last map[string]int            // by table; last: written by the last Sync
}

// begin starts a Sync.
func (r *ruleCounts) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = map[string]int{}
}

// read notes the tables as they were read.
func (r *ruleCounts) read(held tables) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chains, r.total = map[string]map[string]int{}, map[string]int{}
	for table, t := range held {
		r.chains[table] = map[string]int{}
		r.total[table] = len(t.Jumps)
		for name, body := range t.Chains {
			r.set(table, name, strings.Count(body, "\n"))
		}
	}
}

// wrote notes what was written.
func (r *ruleCounts) wrote(w *restore.Writes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for table, t := range w.Tables {
		r.total[table] += len(t.Insert) - len(t.Delete)
		r.last[table] += len(t.Insert)
		for _, c := range t.Write {
			n := strings.Count(c.Body, "\n")
			r.last[table] += n
			r.set(table, c.Name, n)
		}
		for _, name := range t.Remove {
			r.set(table, name, 0)
		}
	}
}

// set notes how many rules a chain has; r.mu is held.
func (r *ruleCounts) set(table, chain string, n int) {
	r.total[table] += n - r.chains[table][chain]
	if n == 0 {
		delete(r.chains[table], chain)
		return
	}
	if r.chains[table] == nil {
		r.chains[table] = map[string]int{}
	}
	r.chains[table][chain] = n
}

func (r *ruleCounts) values() (total, last map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.total), maps.Clone(r.last)
}

func (c *counts) failed(partial bool) {
	c.failures.Add(1)
	if partial {
		c.partialFailures.Add(1)
	}
}

// Counts returns kube-proxy's counts of its iptables mode, and how many rules were ever
// written.
func (b *backend) Counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	for _, f := range b.families {
		for _, c := range []struct {
			name, help string
			grows      bool
			value      uint64
		}{
			{"kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Calls of iptables-restore that failed.", true, f.counts.failures.Load()},
			{"kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "Calls of iptables-restore that failed, with just what changed.", true, f.counts.partialFailures.Load()},
			{"switchyard_iptables_rules_written_total", "Rules written.", true, f.counts.written.Load()},
		} {
			labels := []dataplane.Label{{Name: "ip_family", Value: f.family.String()}}
			out = append(out, dataplane.Count{Name: c.name, Help: c.help, Grows: c.grows, Labels: labels, Value: float64(c.value)})
		}
		out = append(out, f.countRules()...)
	}
	return out, nil
}

// countRules returns the numbers of rules by table.
func (f *familyBackend) countRules() []dataplane.Count {
	total, last := f.counts.rules.values()
	var out []dataplane.Count
	for _, table := range []string{restore.Filter, restore.NAT} {
		labels := []dataplane.Label{{Name: "table", Value: table}, {Name: "ip_family", Value: f.family.String()}}
		out = append(out,
			dataplane.Count{Name: "kubeproxy_sync_proxy_rules_iptables_total", Help: "Rules that are there.", Labels: labels, Value: float64(total[table])},
			dataplane.Count{Name: "kubeproxy_sync_proxy_rules_iptables_last", Help: "Rules that the last Sync wrote.", Labels: labels, Value: float64(last[table])})
	}
	return out
}

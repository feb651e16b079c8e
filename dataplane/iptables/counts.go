package iptables

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
)

// tally counts what one family writes, for other goroutines to read.
type tally struct {
	partial bool // the Sync that goes on writes just what changed; of that goroutine alone

	written                   atomic.Uint64 // rules
	failures, partialFailures atomic.Uint64 // of iptables-restore
	rules                     ruleCounts
}

// ruleCounts tells how many rules the tables have of ours, without a look at
// them.
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

// read takes the tables as they are.
func (r *ruleCounts) read(have map[string]*saved) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chains, r.total = map[string]map[string]int{}, map[string]int{}
	for table, t := range have {
		r.chains[table] = map[string]int{}
		r.total[table] = len(t.jumps)
		for name, body := range t.chains {
			r.set(table, name, strings.Count(body, "\n"))
		}
	}
}

// wrote notes what was written.
func (r *ruleCounts) wrote(tx *transaction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for table, t := range tx.tables {
		r.total[table] += len(t.inserts) - len(t.deletes)
		r.last[table] += len(t.inserts)
		for _, c := range t.write {
			n := strings.Count(c.body, "\n")
			r.last[table] += n
			r.set(table, c.name, n)
		}
		for _, name := range t.remove {
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

func (r *ruleCounts) counts() (total, last map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.total), maps.Clone(r.last)
}

func (t *tally) failed() {
	t.failures.Add(1)
	if t.partial {
		t.partialFailures.Add(1)
	}
}

// Counts are kube-proxy's of its iptables mode, and how many rules were ever
// written.
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
		out = append(out, h.countRules()...)
	}
	return out, nil
}

// countRules are the numbers of rules by table.
func (h *half) countRules() []dataplane.Count {
	total, last := h.tally.rules.counts()
	var out []dataplane.Count
	for _, table := range []string{tableFilter, tableNAT} {
		labels := []dataplane.Label{{Name: "table", Value: table}, {Name: "ip_family", Value: h.family.String()}}
		out = append(out,
			dataplane.Count{Name: "kubeproxy_sync_proxy_rules_iptables_total", Help: "Rules that are there.", Labels: labels, Value: float64(total[table])},
			dataplane.Count{Name: "kubeproxy_sync_proxy_rules_iptables_last", Help: "Rules that the last Sync wrote.", Labels: labels, Value: float64(last[table])})
	}
	return out
}

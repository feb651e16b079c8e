package iptables

import (
	"fmt"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// mend plans what turns the tables as they were read (have) into those that the
// changes make of empty ones.
func mend(have map[string]*saved, next env, changes []change) (*model, *transaction) {
	m := newModel(next)
	wanted := map[string]map[string]bool{tableFilter: {}, tableNAT: {}}
	d := newDelta()
	d.keep = func(table string, c *chain) bool {
		wanted[table][c.name] = true
		differs, there := have[table].differs(*c)
		c.fresh = !there
		return differs
	}
	m.start(changes, d)
	clear(d.remove) // only what was read back is there to be removed
	tx := newTransaction(d)
	for table, s := range have {
		s.repair(table, wanted[table], tx.table(table))
	}
	tx.trim()
	return m, tx
}

// drift lists what full would mend, had it to program held, which the tables
// held last.
func (h *half) drift(have map[string]*saved, held *dataplane.Snapshot) ([]string, error) {
	h.localnet = localnetOf(have[tableFilter].chains[chainInput])
	next, err := h.env(held)
	if err != nil {
		return nil, err
	}
	m, tx := mend(have, next, portsOf(held, h.family))
	var out []string
	if h.model.env.localnet != localnetOff {
		if on, err := routesLocalnet(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	for _, table := range []string{tableFilter, tableNAT} {
		if t, ok := tx.tables[table]; ok {
			t.remove = slices.DeleteFunc(t.remove, func(chain string) bool { return slices.Contains(h.stale, chain) })
			out = append(out, t.drift(h.family, table, m)...)
		}
	}
	return out, nil
}

// portsOf returns the ServicePorts of a family.
func portsOf(s *dataplane.Snapshot, f dataplane.Family) []change {
	var out []change
	for p := range s.Ports.All() {
		if p.ID.Family == f {
			out = append(out, change{new: p})
		}
	}
	return out
}

// drift says in words what a change of a table would mend.
func (t *tableText) drift(f dataplane.Family, table string, m *model) []string {
	var out []string
	where := fmt.Sprintf("%s, table %s: ", f, table)
	for _, j := range t.inserts {
		out = append(out, fmt.Sprintf("%sthe rule of %s that leads to %s is missing", where, j.from, j.to))
	}
	for _, r := range t.deletes {
		out = append(out, fmt.Sprintf("%sa rule of %s is not wanted: %s", where, r.chain, r.rule))
	}
	for _, c := range t.write {
		what := "has other rules than were written"
		if c.fresh {
			what = "is missing"
		}
		out = append(out, fmt.Sprintf("%schain %s%s %s", where, c.name, m.ownerOf(c.name), what))
	}
	for _, c := range t.remove {
		out = append(out, fmt.Sprintf("%schain %s is not wanted", where, c))
	}
	slices.Sort(out)
	return out
}

// ownerOf names the ServicePort that a chain is of, in brackets; "": of none.
func (m *model) ownerOf(chain string) string {
	for _, prefix := range []string{prefixPool, prefixEntry, prefixSources} {
		if n := len(prefix); len(chain) >= n+hashLen && chain[:n] == prefix {
			if p, ok := m.owners[chain[n:n+hashLen]]; ok {
				return fmt.Sprintf(" (%s)", p.ID)
			}
		}
	}
	return ""
}

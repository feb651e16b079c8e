package iptables

import (
	"fmt"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// drift returns, in words, what a full Sync would write, had it to program what was
// accepted last.
func (f *familyBackend) drift(read tables, last *noted) ([]string, error) {
	next, err := f.nodeFor(last.accepted, localnetOf(read))
	if err != nil {
		return nil, err
	}
	h, d := newHeld(next), newDiff(read)
	h.start(additions(last.accepted, f.family), d)
	w := d.rest()
	var out []string
	if last.node.localnet != localnet.Off {
		if on, err := localnet.IsOn(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	for _, name := range []string{restore.Filter, restore.NAT} {
		if t, ok := w.Tables[name]; ok {
			t.Remove = slices.DeleteFunc(t.Remove, func(chain string) bool { return slices.Contains(last.stale, chain) })
			out = append(out, h.inWords(t, name)...)
		}
	}
	return out, nil
}

// inWords returns what is written to a table, as what is wrong with it.
func (h *held) inWords(t *restore.TableWrites, table string) []string {
	var out []string
	where := fmt.Sprintf("%s, table %s: ", h.node.family, table)
	for _, j := range t.Insert {
		out = append(out, fmt.Sprintf("%sthe rule of %s that leads to %s is missing", where, j.From, j.To))
	}
	for _, r := range t.Delete {
		out = append(out, fmt.Sprintf("%sa rule of %s is not wanted: %s", where, r.Chain, r.Rule))
	}
	for _, c := range t.Write {
		what := "has other rules than were written"
		if c.Fresh {
			what = "is missing"
		}
		out = append(out, fmt.Sprintf("%schain %s%s %s", where, c.Name, h.ownerOf(c.Name), what))
	}
	for _, c := range t.Remove {
		out = append(out, fmt.Sprintf("%schain %s is not wanted", where, c))
	}
	slices.Sort(out)
	return out
}

// ownerOf returns the ServicePort that a chain is of, in brackets. Empty means none.
func (h *held) ownerOf(chain string) string {
	for _, prefix := range []string{prefixPool, prefixChoice, prefixSources} {
		if n := len(prefix); len(chain) >= n+hashLen && chain[:n] == prefix {
			if p, ok := h.ports[chain[n:n+hashLen]]; ok {
				return fmt.Sprintf(" (%s)", p.ID)
			}
		}
	}
	return ""
}

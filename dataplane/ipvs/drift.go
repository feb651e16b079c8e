package ipvs

import (
	"fmt"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// drift says in words what a Sync with prev nil would mend, had it to program
// what the kernel held last.
func (h *half) drift(have *reading) ([]string, error) {
	next := h.env
	next.see(h.held, h.family, h.backend.cfg.LocalhostNodePorts)
	c, err := h.compare(have, &next, h.held, h.ids.Look)
	if err != nil {
		return nil, err
	}
	out := c.writes.driftOfTable(h.table)
	if c.writes.rules.localnet != localnet.Off {
		if on, err := localnet.IsOn(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	for _, s := range c.writes.services {
		out = append(out, s.drift()...)
	}
	for _, key := range c.writes.goneServices {
		out = append(out, fmt.Sprintf("%s is nobody's any more", key))
	}
	for _, a := range c.writes.newRoutes {
		out = append(out, fmt.Sprintf("the local route to %s is missing", a))
	}
	for _, a := range c.writes.wrongRoutes {
		out = append(out, fmt.Sprintf("the local route to %s has another source or MTU", a))
	}
	for _, a := range c.writes.oldRoutes {
		out = append(out, fmt.Sprintf("the local route to %s is nobody's any more", a))
	}
	return out, nil
}

// driftOfTable says what the table's change would mend.
func (w *writes) driftOfTable(t *nft.Table) []string {
	name := t.String()
	if w.first.Remake {
		return []string{name + ": it, a set or a base chain is missing"}
	}
	var out []string
	say := func(what, where string) { out = append(out, fmt.Sprintf("%s: %s %s", name, what, where)) }
	for chain := range w.first.Chains {
		say("not as written: chain", chain)
	}
	for _, chain := range w.last.OldChains {
		say("nobody's any more: chain", chain)
	}
	// A set that was flushed is one line, not one for each Service.
	missing, strange := map[string]int{}, map[string]int{}
	for e := range w.first.Put {
		missing[e.Set]++
	}
	for _, e := range w.last.Remove {
		strange[e.Set]++
	}
	for set, n := range missing {
		say(fmt.Sprintf("missing or wrong: elements (%d) of", n), set)
	}
	for set, n := range strange {
		say(fmt.Sprintf("nobody's any more: elements (%d) of", n), set)
	}
	return out
}

// drift says what writeService would mend.
func (s *serviceChange) drift() []string {
	if !s.there || !s.have.ours {
		return []string{fmt.Sprintf("%s is missing", s.want.key)}
	}
	var out []string
	if s.have.scheduler != s.want.scheduler || s.have.flags != flagsOf(s.want.scheduler) {
		out = append(out, fmt.Sprintf("%s has scheduler %s with flags %#x", s.want.key, s.have.scheduler, s.have.flags))
	}
	wanted := map[netip.AddrPort]bool{}
	for _, e := range s.want.endpoints {
		wanted[e.Addr] = true
		if d, there := s.have.destinations[e.Addr]; !there || d.weight != 1 {
			out = append(out, fmt.Sprintf("%s does not send to %s", s.want.key, e.Addr))
		}
	}
	for a, d := range s.have.destinations {
		if d.weight > 0 && !wanted[a] { // else it drains
			out = append(out, fmt.Sprintf("%s sends to %s", s.want.key, a))
		}
	}
	return out
}

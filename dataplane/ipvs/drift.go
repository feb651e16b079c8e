package ipvs

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
)

// drift says in words what a Sync with prev nil would mend, had it to program
// what the kernel held last.
func (b *backend) drift(have *reading) ([]string, error) {
	next := b.env
	next.see(b.held, b.cfg.LocalhostNodePorts)
	c, err := b.compare(have, &next, b.held)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range c.writes.tables {
		out = append(out, t.drift()...)
		if t.rules.localnet != localnet.Off {
			if on, err := localnet.IsOn(); err == nil && !on {
				out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
			}
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
	slices.Sort(out)
	return out, nil
}

// drift says what a table's change would mend.
func (c *tableWrites) drift() []string {
	name := c.table.String()
	if c.first.Remake {
		return []string{name + ": it, a set or a base chain is missing"}
	}
	var out []string
	say := func(what, where string) { out = append(out, fmt.Sprintf("%s: %s %s", name, what, where)) }
	for chain := range c.first.Chains {
		say("not as written: chain", chain)
	}
	for _, chain := range c.last.OldChains {
		say("nobody's any more: chain", chain)
	}
	// A set that was flushed is one line, not one for each Service.
	missing, strange := map[string]int{}, map[string]int{}
	for e := range c.first.Put {
		missing[e.Set]++
	}
	for _, e := range c.last.Remove {
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

package ipvs

import (
	"fmt"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// drift says in words what a Sync with prev nil would mend, had it to program
// what Syncs left. What the kernel holds is taken over.
func (l *left) drift(t *nft.Table, held *held) ([]string, error) {
	next := l.node
	next.taken = held.taken
	state, err := localnet.Next(next.localhost, localnet.Resume(held.table.Chains[chainInput], l.localnet))
	if err != nil {
		return nil, err
	}
	d, err := whole(t, &next, l.ids.Look, held, state)
	if err != nil {
		return nil, err
	}
	d.wantAll(l.held.Ports)
	out := d.Words()
	if state != localnet.Off {
		if on, err := localnet.IsOn(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	for _, s := range d.services {
		out = append(out, s.drift()...)
	}
	for _, key := range d.goneServices {
		out = append(out, fmt.Sprintf("%s is nobody's any more", key))
	}
	for _, a := range d.newRoutes {
		out = append(out, fmt.Sprintf("the local route to %s is missing", a))
	}
	for _, a := range d.wrongRoutes {
		out = append(out, fmt.Sprintf("the local route to %s has another source or MTU", a))
	}
	for _, a := range d.oldRoutes {
		out = append(out, fmt.Sprintf("the local route to %s is nobody's any more", a))
	}
	return out, nil
}

// drift says what writeService would mend.
func (s *serviceChange) drift() []string {
	if !s.there || !s.held.ours {
		return []string{fmt.Sprintf("%s is missing", s.want.key)}
	}
	var out []string
	if s.held.scheduler != s.want.scheduler || s.held.flags != flagsOf(s.want.scheduler) {
		out = append(out, fmt.Sprintf("%s has scheduler %s with flags %#x", s.want.key, s.held.scheduler, s.held.flags))
	}
	wanted := map[netip.AddrPort]bool{}
	for _, e := range s.want.endpoints {
		wanted[e.Addr] = true
		if d, there := s.held.destinations[e.Addr]; !there || d.weight != 1 {
			out = append(out, fmt.Sprintf("%s does not send to %s", s.want.key, e.Addr))
		}
	}
	for a, d := range s.held.destinations {
		if d.weight > 0 && !wanted[a] { // else it drains
			out = append(out, fmt.Sprintf("%s sends to %s", s.want.key, a))
		}
	}
	return out
}

package nftables

import (
	"fmt"
	"maps"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// drift says in words what a Sync with prev nil would mend, had it to program
// what the kernel held last.
func (h *half) drift(state *nft.State) ([]string, error) {
	held := *state
	held.Elements = maps.Clone(state.Elements)
	d, err := whole(h.table, rulesFor(&h.node), h.ids, &held, h.notes)
	if err != nil {
		return nil, err
	}
	var out []string
	if h.node.localhost && h.localnetFailed == nil {
		if on, err := localnet.IsOn(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	if d.first.Remake {
		return append(out, h.table.String()+": it is missing, or its flags, a set or a base chain are not as written"), nil
	}
	for port := range h.held.Ports.All() {
		if port.ID.Family == h.table.Family {
			d.port(planFor(port, h.ids.Look(port)))
		}
	}
	d.rest()
	return append(out, h.differences(d)...), nil
}

// differences says what a diff would write. A set that was flushed is one line,
// not one for each Service.
func (h *half) differences(d *diff) []string {
	var out []string
	say := func(what, where string) { out = append(out, fmt.Sprintf("%s: %s %s", h.table, what, where)) }
	for _, set := range d.first.Sets {
		say("missing: set", set)
	}
	for chain := range d.first.Chains {
		say("not as written: chain", chain)
	}
	for _, chain := range d.last.OldChains {
		say("nobody's any more: chain", chain)
	}
	missing, strange := map[string]int{}, map[string]int{}
	for e := range d.first.Put {
		missing[e.Set]++
	}
	for _, e := range d.last.Remove {
		strange[e.Set]++
	}
	for set, n := range missing {
		say(fmt.Sprintf("missing or wrong: elements (%d) of", n), set)
	}
	for set, n := range strange {
		say(fmt.Sprintf("nobody's any more: elements (%d) of", n), set)
	}
	slices.Sort(out)
	return out
}

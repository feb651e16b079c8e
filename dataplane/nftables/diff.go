package nftables

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// diff finds what to write so that a table holds what is wanted. It is used for
// a whole Snapshot, compared with what the kernel holds, and for a change, compared
// with what the ServicePorts that changed had.
type diff struct {
	rules *rules
	held  map[nft.Element]string // what nobody has wanted so far
	refs  map[nft.Element]int    // how many ServicePorts want each shared element
	// first is written in one transaction, and leads connections to what is wanted.
	// last removes what nothing leads to any more: a packet on its way through the
	// rules may have read an older number of endpoints.
	first, last nft.Change
}

func newDiff(r *rules, held map[nft.Element]string, refs map[nft.Element]int) *diff {
	return &diff{rules: r, held: held, refs: refs, first: nft.NewChange(), last: nft.NewChange()}
}

// want takes an element from held and has it written if it is not there or has other data.
func (d *diff) want(e nft.Element, data string) {
	have, there := d.held[e]
	delete(d.held, e)
	if there && have == data {
		return
	}
	if e.Set == setChains {
		d.first.Chains[e.Key] = d.rules.optional(e.Key)
		return
	}
	d.first.Compare(e, have, there, data)
}

// port wants all of a ServicePort, and counts it as one that wants what it shares.
func (d *diff) port(p *plan) {
	for e, data := range p.own {
		d.want(e, data)
	}
	for e, data := range p.shared {
		if d.refs[e]++; d.refs[e] == 1 {
			d.want(e, data)
		}
	}
}

// rest removes what nobody wanted.
func (d *diff) rest() {
	for e := range d.held {
		if e.Set == setChains {
			d.last.OldChains = append(d.last.OldChains, e.Key)
		} else {
			d.last.Remove = append(d.last.Remove, e)
		}
	}
	slices.Sort(d.last.OldChains)
}

// change compares the ServicePorts of a family that differ between two
// Snapshots. refs are taken over.
func change(r *rules, refs map[nft.Element]int, prev, want dataplane.Ports) *diff {
	d := newDiff(r, map[nft.Element]string{}, refs)
	var next []*plan
	for old, cur := range dataplane.Diff(prev, want) {
		if old != nil && old.ID.Family == r.Family {
			d.had(planFor(old))
		}
		if cur != nil && cur.ID.Family == r.Family {
			next = append(next, planFor(cur))
		}
	}
	for _, p := range next {
		d.port(p)
	}
	d.rest()
	return d
}

// had is what a ServicePort had before a change. What it shared with others stays
// theirs.
func (d *diff) had(p *plan) {
	for e, data := range p.own {
		d.held[e] = data
	}
	for e, data := range p.shared {
		if d.refs[e]--; d.refs[e] <= 0 {
			delete(d.refs, e)
			d.held[e] = data
		}
	}
}

// changeNode compares what depends on the node alone.
func (d *diff) changeNode(t *nft.Table, old, cur *node) error {
	for _, e := range cur.elements() {
		if !slices.Contains(old.elements(), e) {
			d.first.Put[e] = ""
		}
	}
	for _, e := range old.elements() {
		if !slices.Contains(cur.elements(), e) {
			d.last.Remove = append(d.last.Remove, e)
		}
	}
	if cur.sameRules(old) {
		return nil
	}
	was := rulesFor(old).constants()
	for name, chain := range d.rules.constants() {
		before, err := t.Comments(was[name], "")
		if err != nil {
			return err
		}
		now, err := t.Comments(chain, "")
		if err != nil {
			return err
		}
		if !slices.Equal(before, now) {
			d.first.Chains[name] = chain
		}
	}
	return nil
}

// whole begins a comparison with all that the kernel holds. What depends on the
// node alone is compared at once; ServicePorts follow, and rest ends it.
func whole(t *nft.Table, r *rules, state *nft.State, note func(string) string) (*diff, error) {
	d := newDiff(r, state.Elements, map[nft.Element]int{})
	constants := r.constants()
	if !state.Whole {
		d.held = map[nft.Element]string{}
		d.first.Remake, d.first.Present, d.first.Chains = true, state.Present, constants
	} else if err := d.chains(t, state, constants, note); err != nil {
		return nil, err
	}
	for _, e := range r.node.elements() {
		d.want(e, "")
	}
	return d, nil
}

// chains compares the chains that the kernel holds. One that is not as written
// counts as held with other data.
func (d *diff) chains(t *nft.Table, state *nft.State, constants map[string][]nft.Rule, note func(string) string) error {
	for name, chain := range constants {
		comments, err := t.Comments(chain, note(name))
		if err != nil {
			return err
		}
		if have, ok := state.Chains[name]; !ok || !slices.Equal(have, comments) {
			d.first.Chains[name] = chain
		}
	}
	for name, have := range state.Chains {
		if _, ok := constants[name]; ok {
			continue
		}
		comments, err := t.Comments(d.rules.optional(name), "")
		if err != nil {
			return err
		}
		data := ""
		if !isOptional(name) || !slices.Equal(have, comments) {
			data = "not as written"
		}
		d.held[nft.Element{Family: t.Family, Set: setChains, Key: name}] = data
	}
	return nil
}

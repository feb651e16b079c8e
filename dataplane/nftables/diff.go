package nftables

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// diff finds what to write so that a table holds what is wanted. It is used for
// a whole Snapshot, compared with what the kernel holds, and for a change, compared
// with what the ServicePorts that changed had.
type diff struct {
	rules *rules
	ids   *affinity.IDs
	held  map[nft.Element]string // what nobody has wanted so far
	// ranges are the source ranges of held by set and place. The kernel refuses
	// ranges that overlap, so those that go make room for those that come.
	ranges map[nft.Element][]nft.Element
	refs   map[nft.Element]int // how many ServicePorts want each shared element
	// first is written in one transaction, and leads connections to what is wanted.
	// last removes what nothing leads to any more: a packet on its way through the
	// rules may have read an older number of endpoints.
	first, last nft.Change
}

func newDiff(r *rules, ids *affinity.IDs, held map[nft.Element]string, refs map[nft.Element]int) *diff {
	if held == nil {
		held = map[nft.Element]string{}
	}
	d := &diff{rules: r, ids: ids, held: held, refs: refs, ranges: map[nft.Element][]nft.Element{}, first: nft.NewChange(), last: nft.NewChange()}
	for e := range held {
		d.noteRange(e)
	}
	return d
}

// hold notes an element that the kernel holds.
func (d *diff) hold(e nft.Element, data string) {
	d.held[e] = data
	d.noteRange(e)
}

func (d *diff) noteRange(e nft.Element) {
	if place, ok := rangeOf(e); ok {
		d.ranges[place] = append(d.ranges[place], e)
	}
}

// rangeOf returns the set and place of a source range; ok is false for other elements.
func rangeOf(e nft.Element) (place nft.Element, ok bool) {
	switch e.Set {
	case setSources:
		e.Key = e.Key[:min(len(e.Key), nft.PlaceLen(e.Family))]
	case on(true, setSources):
		e.Key = e.Key[:min(len(e.Key), nft.NodePlaceLen)]
	default:
		return e, false
	}
	return e, true
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
	for e := range p.own {
		if place, ok := rangeOf(e); ok {
			d.makeRoom(place)
		}
	}
}

// makeRoom removes the source ranges that a place has no more in the step that
// adds its new ones.
func (d *diff) makeRoom(place nft.Element) {
	for _, e := range d.ranges[place] {
		if _, held := d.held[e]; held {
			delete(d.held, e)
			d.first.Remove = append(d.first.Remove, e)
		}
	}
	delete(d.ranges, place)
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
// Snapshots. refs and ids are taken over. After each ServicePort it calls each.
func change(d *diff, prev, want dataplane.Ports, each func() error) error {
	var next []*dataplane.ServicePort
	for old, cur := range dataplane.Diff(prev, want) {
		if old != nil && old.ID.Family == d.rules.Family {
			d.had(planFor(old, d.ids.Of(old)))
			d.ids.Forget(old, cur)
		}
		if cur != nil && cur.ID.Family == d.rules.Family {
			next = append(next, cur)
		}
	}
	for _, port := range next {
		d.port(planFor(port, d.ids.Of(port)))
		if err := each(); err != nil {
			return err
		}
	}
	d.rest()
	return nil
}

// had is what a ServicePort had before a change. What it shared with others stays
// theirs.
func (d *diff) had(p *plan) {
	for e, data := range p.own {
		d.hold(e, data)
	}
	for e, data := range p.shared {
		if d.refs[e]--; d.refs[e] <= 0 {
			delete(d.refs, e)
			d.hold(e, data)
		}
	}
}

// changeNode compares what depends on the node alone.
func (d *diff) changeNode(t *nft.Table, old, cur *node, sameNotes bool) error {
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
	if !sameNotes { // who switched route_localnet on is in the comment of its guard
		d.first.Chains[chainInput] = d.rules.constants()[chainInput]
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
//
// A table that is missing or strange is made anew.
func whole(t *nft.Table, r *rules, ids *affinity.IDs, state *nft.State, note func(string) string) (*diff, error) {
	constants := r.constants()
	var d *diff
	if !state.Present || state.Strange {
		d = newDiff(r, ids, nil, map[nft.Element]int{})
		d.first.Remake, d.first.Present, d.first.Chains = true, state.Present, constants
	} else {
		d = newDiff(r, ids, state.Elements, map[nft.Element]int{})
		d.first.Present, d.first.Sets = true, state.Missing
		if err := d.chains(t, state, constants, note); err != nil {
			return nil, err
		}
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

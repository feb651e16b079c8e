package nft

import (
	"fmt"
	"slices"
)

// Chains is in the place of a set's name in Elements that are chains, which exist
// while something needs them.
const Chains = "(chains)"

// Plan is what a table shall hold of one ServicePort.
type Plan struct {
	// Own are this ServicePort's elements, with their data; of a map to verdicts, the
	// chain.
	Own map[Element]string
	// Shared are elements that other ServicePorts may want too, with the same data,
	// and chains.
	Shared map[Element]string
}

// NewPlan returns a plan of nothing yet.
func NewPlan() Plan { return Plan{Own: map[Element]string{}, Shared: map[Element]string{}} }

// mostRoom is the most elements of which a Plan keeps the room: to empty a map costs
// what it ever held.
const mostRoom = 256

// Reset makes it a plan of nothing, and keeps its room.
func (p *Plan) Reset() {
	if p.Own == nil || len(p.Own)+len(p.Shared) > mostRoom {
		*p = NewPlan()
		return
	}
	clear(p.Own)
	clear(p.Shared)
}

// Diff finds what to write so that a table holds what is wanted. It is used for
// a whole Snapshot, compared with what the kernel holds, and for a change, compared
// with the plans of what the ServicePorts that changed were.
type Diff struct {
	// First is written in one transaction, and leads connections to what is wanted.
	// Last removes what nothing leads to any more: a packet on its way through the
	// rules may have read what led there.
	First, Last Change
	// Refs say how many ServicePorts want each shared element.
	Refs map[Element]int

	table *Table
	rules func(chain string) []Rule // of a chain that exists while something needs it
	held  map[Element]string        // what nobody has wanted so far
	// ranges are the ranges of held by set and place. The kernel refuses ranges
	// that overlap, so those that go make room for those that come.
	ranges map[Element][]Element
}

// NewDiff returns a Diff of a table of which nothing is held yet. rules makes the
// chains that exist while something needs them. refs are taken over.
func NewDiff(t *Table, rules func(chain string) []Rule, refs map[Element]int) *Diff {
	return &Diff{First: NewChange(), Last: NewChange(), Refs: refs, table: t, rules: rules, held: map[Element]string{}, ranges: map[Element][]Element{}}
}

// Hold notes an element that the kernel holds.
func (d *Diff) Hold(e Element, data string) {
	d.held[e] = data
	if place, ok := d.rangeOf(e); ok {
		d.ranges[place] = append(d.ranges[place], e)
	}
}

// rangeOf returns the set and place of a range of clients; ok is false for other
// elements. The client's address is the last part of the key.
func (d *Diff) rangeOf(e Element) (place Element, ok bool) {
	set := d.table.kinds[e.Set]
	if !set.Intervals {
		return e, false
	}
	e.Key = e.Key[:min(len(e.Key), int(set.Key.Bytes)-AddrLen(e.Family))]
	return e, true
}

// HoldAll notes all that the kernel holds, which is taken over, and compares the
// chains that no ServicePort changes. note is what the comments of a chain's rules
// carry beside their signature.
//
// A table that is missing or strange is made anew.
func (d *Diff) HoldAll(held *State, constants map[string][]Rule, note func(chain string) string) error {
	if !held.Present || held.Strange {
		d.First.Remake, d.First.Present, d.First.Chains = true, held.Present, constants
		return nil
	}
	d.First.Present, d.First.Sets = true, held.Missing
	for e, data := range held.Elements {
		d.Hold(e, data)
	}
	for name, chain := range constants {
		comments, err := d.table.Comments(chain, note(name))
		if err != nil {
			return err
		}
		if have, ok := held.Chains[name]; !ok || !slices.Equal(have, comments) {
			d.First.Chains[name] = chain
		}
	}
	for name, have := range held.Chains {
		if _, ok := constants[name]; ok {
			continue
		}
		comments, err := d.table.Comments(d.rules(name), "")
		if err != nil {
			return err
		}
		data := ""
		if !slices.Equal(have, comments) {
			data = "not as written"
		}
		d.Hold(Element{Family: d.table.Family, Set: Chains, Key: name}, data)
	}
	return nil
}

// ChangeChains compares chains that no ServicePort changes with what they were.
func (d *Diff) ChangeChains(was, constants map[string][]Rule) error {
	for name, chain := range constants {
		before, err := d.table.Comments(was[name], "")
		if err != nil {
			return err
		}
		now, err := d.table.Comments(chain, "")
		if err != nil {
			return err
		}
		if !slices.Equal(before, now) {
			d.First.Chains[name] = chain
		}
	}
	return nil
}

// Had notes what the kernel holds of a ServicePort that changes. What it shared
// with others stays theirs.
func (d *Diff) Had(p *Plan) {
	for e, data := range p.Own {
		d.Hold(e, data)
	}
	for e, data := range p.Shared {
		if d.Refs[e]--; d.Refs[e] <= 0 {
			delete(d.Refs, e)
			d.Hold(e, data)
		}
	}
}

// Want has an element written if it is not held or has other data.
func (d *Diff) Want(e Element, data string) {
	have, there := d.held[e]
	delete(d.held, e)
	switch {
	case there && have == data:
	case e.Set == Chains:
		d.First.Chains[e.Key] = d.rules(e.Key)
	default:
		d.First.Compare(e, have, there, data)
	}
}

// WantPlan wants all of a ServicePort, and counts it as one that wants what it
// shares.
func (d *Diff) WantPlan(p *Plan) {
	for e, data := range p.Own {
		d.Want(e, data)
	}
	for e, data := range p.Shared {
		if d.Refs[e]++; d.Refs[e] == 1 {
			d.Want(e, data)
		}
	}
	for e := range p.Own {
		if place, ok := d.rangeOf(e); ok {
			d.makeRoom(place)
		}
	}
}

// makeRoom removes the ranges that a place has no more in the step that adds its
// new ones.
func (d *Diff) makeRoom(place Element) {
	for _, e := range d.ranges[place] {
		if _, held := d.held[e]; held {
			delete(d.held, e)
			d.First.Remove = append(d.First.Remove, e)
		}
	}
	delete(d.ranges, place)
}

// Rest removes what nobody wanted.
func (d *Diff) Rest() {
	for e := range d.held {
		if e.Set == Chains {
			d.Last.OldChains = append(d.Last.OldChains, e.Key)
		} else {
			d.Last.Remove = append(d.Last.Remove, e)
		}
	}
	slices.Sort(d.Last.OldChains)
}

// Words say what would be written. A set that was flushed is one line, not one for
// each Service.
func (d *Diff) Words() []string {
	if d.First.Remake {
		return []string{d.table.String() + ": it is missing, or its flags, a set or a base chain are not as written"}
	}
	var out []string
	say := func(what, where string) { out = append(out, fmt.Sprintf("%s: %s %s", d.table, what, where)) }
	for _, set := range d.First.Sets {
		say("missing: set", set)
	}
	for chain := range d.First.Chains {
		say("not as written: chain", chain)
	}
	for _, chain := range d.Last.OldChains {
		say("nobody's any more: chain", chain)
	}
	missing, strange := map[string]int{}, map[string]int{}
	for e := range d.First.Put {
		missing[e.Set]++
	}
	for _, e := range slices.Concat(d.First.Remove, d.Last.Remove) {
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

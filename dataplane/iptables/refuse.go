package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// refused are the ServicePorts that could not be programmed, and why.
type refused map[dataplane.PortID]error

// errTaken says that two ServicePorts want the same thing.
var errTaken = errors.New("taken by another Service port")

// vet finds the changes that cannot be written, before anything is.
func (h *held) vet(changes []change) refused {
	bad := refused{}
	freed := map[treeKey]bool{}
	for _, c := range changes {
		if c.old != nil {
			for i := range c.old.Frontends {
				freed[h.keyOf(c.old, i)] = true
			}
		}
	}
	taken := map[treeKey]bool{}
	hashes := map[string]bool{}
	for _, c := range changes {
		if c.new == nil {
			continue
		}
		err := vetPort(c.new)
		if err == nil {
			err = h.vetFrontends(c.new, freed, taken)
		}
		hash := portHash(c.new.ID)
		if owner, have := h.ports[hash]; have && owner.ID != c.new.ID || hashes[hash] {
			err = fmt.Errorf("the names of its chains, %s: %w", hash, errTaken)
		}
		if err != nil {
			bad[c.id()] = err
			continue
		}
		hashes[hash] = true
		for i := range c.new.Frontends {
			taken[h.keyOf(c.new, i)] = true
		}
	}
	return bad
}

func (h *held) vetFrontends(p *dataplane.ServicePort, freed, taken map[treeKey]bool) error {
	for i, f := range p.Frontends {
		at := h.keyOf(p, i)
		if _, have := at.tree.Get(at.key); have && !freed[at] || taken[at] {
			return fmt.Errorf("frontend %s %s: %w", f.Kind, f.Addr, errTaken)
		}
	}
	return nil
}

// treeKey is a key of one tree.
type treeKey struct {
	tree *tree
	key  string
}

func (h *held) keyOf(p *dataplane.ServicePort, i int) treeKey {
	e := entryOf(p, &p.Frontends[i])
	return treeKey{h.treeOf(e), e.key}
}

// leaveOut takes refused changes out, and those that cannot be without them.
func (a *attempt) leaveOut(why refused) {
	for len(why) > 0 { // each round takes one out, and puts one in at most once for each
		a.drop(why)
		why = a.held.vet(a.changes)
	}
}

// errGone marks a ServicePort whose earlier form is refused as well.
var errGone = errors.New("nor can it stay as it was")

// drop takes refused changes out, notes why, and puts in what is done in their place.
func (a *attempt) drop(why refused) {
	out := make([]change, 0, len(a.changes))
	for _, c := range a.changes {
		err, bad := why[c.id()]
		if !bad {
			out = append(out, c)
			continue
		}
		if first, second := a.refused[c.id()]; second {
			a.refused[c.id()] = fmt.Errorf("%w; %w: %w", first, errGone, err)
			if c.old != nil {
				out = append(out, change{old: c.old})
			}
			continue
		}
		a.refused[c.id()] = err
		if instead, ok := a.fallback(c); ok {
			out = append(out, instead)
		}
	}
	a.changes = out
}

// mostTries bounds the tries in search of refused ServicePorts.
const mostTries = 2000

// trialNames replaces each of our chains by a stand-in to which nothing leads.
func trialNames() *strings.Replacer {
	return strings.NewReplacer(
		prefixPool, "SY-U-", prefixChoice, "SY-V-", prefixSources, "SY-W-", ownPrefix, prefixTrial)
}

// try finds the ServicePorts that iptables or the kernel refuses, by writing
// their rules to chains that nothing leads to. Nothing that forwards is touched.
func (f *familyBackend) try(ctx context.Context, changes []change, n *node) (refused, error) {
	bad := refused{}
	groups := slices.Collect(slices.Chunk(f.trials(changes, n), restore.StageSize/2))
	for tries := 0; len(groups) > 0; tries++ {
		group := groups[len(groups)-1]
		groups = groups[:len(groups)-1]
		if len(group) == 0 {
			continue
		}
		if tries == mostTries {
			return nil, fmt.Errorf("finding the refused Service ports: not done after %d tries", tries)
		}
		no, err := f.tryGroup(ctx, group)
		switch {
		case err != nil:
			return nil, err
		case no == nil:
		case len(group) == 1:
			bad[group[0].id] = no
		default:
			groups = append(groups, split(group, no, bad)...)
		}
	}
	return bad, nil
}

// split parts a refused group: the ServicePorts at the lines of the error are
// to blame, or else it is one of either part.
func split(group []trial, no *restore.Refusal, bad refused) [][]trial {
	var rest []trial
	for _, t := range group {
		if slices.ContainsFunc(no.Lines, t.wrote) {
			bad[t.id] = no
		} else {
			rest = append(rest, t)
		}
	}
	if len(rest) < len(group) {
		return [][]trial{rest}
	}
	middle := len(group) / 2
	return [][]trial{group[:middle], group[middle:]}
}

// trial is one ServicePort's rules under other names.
type trial struct {
	id          dataplane.PortID
	chains      []restore.Chain
	rules       []string // of the trees
	first, last int      // lines of the input that are its
}

func (t trial) wrote(line int) bool { return t.first <= line && line <= t.last }

func (f *familyBackend) trials(changes []change, n *node) []trial {
	var out []trial
	names := trialNames()
	h := newHeld(*n)
	for _, c := range changes {
		if c.new == nil {
			continue
		}
		p := planFor(c.new, n)
		t := trial{id: c.id()}
		for _, ch := range p.chains {
			t.chains = append(t.chains, restore.Chain{Name: names.Replace(ch.Name), Body: names.Replace(ch.Body)})
		}
		for _, e := range p.entries {
			t.rules = append(t.rules, names.Replace(string(h.treeOf(e).rule(nil, "", e.key, e.value))))
		}
		out = append(out, t)
	}
	return out
}

// tryGroup writes a group of trials and removes them again. A nil refusal
// means that all are fine.
func (f *familyBackend) tryGroup(ctx context.Context, group []trial) (*restore.Refusal, error) {
	const dispatch = prefixTrial + "DISPATCH"
	chains := map[string]bool{dispatch: true}
	names := trialNames()
	for _, c := range natConstants(&node{family: f.family, bit: f.bit}) {
		chains[names.Replace(c.Name)] = true
	}
	for _, t := range group {
		for _, c := range t.chains {
			chains[c.Name] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(chains))
	var in bytes.Buffer
	in.WriteString("*" + restore.NAT + "\n")
	for _, name := range sorted {
		in.WriteString(":" + name + " - [0:0]\n")
	}
	line := len(sorted) + 1
	for i := range group {
		t := &group[i]
		start := in.Len()
		for _, c := range t.chains {
			restore.WriteRules(&in, c)
		}
		restore.WriteRules(&in, restore.Chain{Name: dispatch, Body: strings.Join(t.rules, "")})
		t.first = line + 1
		line += bytes.Count(in.Bytes()[start:], []byte("\n"))
		t.last = line
	}
	in.WriteString("COMMIT\n")
	err := f.commands.Restore(ctx, in.Bytes())
	if no := (*restore.Refusal)(nil); errors.As(err, &no) {
		return no, nil
	}
	if err != nil {
		return nil, err
	}
	tx := &restore.Writes{}
	tx.Table(restore.NAT).Remove = sorted
	return nil, f.commands.Restore(ctx, tx.Text())
}

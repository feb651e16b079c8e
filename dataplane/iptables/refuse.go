package iptables

import (
	"errors"
	"fmt"

	"github.com/switchyard-io/switchyard/dataplane"
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

package nft

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Sizes of what goes to the kernel at once.
const (
	elementsAMessage = 400    // an attribute holds 64 KiB
	elementsAWrite   = 50_000 // some 5 MB of socketBuffer
)

// Change is what to write. It happens in this order, in one transaction. If it
// has more than 50,000 elements and no Remake, it is several, and each element
// is replaced in one of them.
type Change struct {
	Remake    bool               // remove the table, if it is Present, and make it anew
	Present   bool               // the table is there
	Sets      []string           // to make
	Chains    map[string][]Rule  // to make or to write anew
	Put       map[Element]string // with their data; of a map to verdicts, the chain
	Replaced  map[Element]bool   // those of Put that are there with other data
	Remove    []Element
	OldChains []string
}

// NewChange returns a change that does nothing yet.
func NewChange() Change {
	return Change{Chains: map[string][]Rule{}, Put: map[Element]string{}, Replaced: map[Element]bool{}}
}

// Reset makes it do nothing, and keeps its room for as much again.
func (c *Change) Reset() {
	clear(c.Put)
	clear(c.Replaced)
	*c = Change{Chains: map[string][]Rule{}, Put: c.Put, Replaced: c.Replaced}
}

// Empty reports whether there is nothing to write.
func (c *Change) Empty() bool {
	return !c.Remake && len(c.Sets) == 0 && len(c.Chains) == 0 && len(c.Put) == 0 && len(c.Remove) == 0 && len(c.OldChains) == 0
}

// Len returns how many elements it writes.
func (c *Change) Len() int { return len(c.Put) + len(c.Remove) }

// Compare adds what makes an element's data be want where the kernel has have.
func (c *Change) Compare(e Element, have string, there bool, want string) {
	if there && have == want {
		return
	}
	c.Put[e] = want
	if there {
		c.Replaced[e] = true
	}
}

// Write makes a change. note is added to the comments of a chain's rules; nil adds nothing.
func (t *Table) Write(change *Change, note func(chain string) string) error {
	if change.Empty() {
		return nil
	}
	if err := t.prepare(change, note); err != nil {
		return err
	}
	return t.flush()
}

// Try returns the error that the kernel would answer a change with, and changes
// nothing: the last step of the transaction is one that must fail, so that the
// kernel undoes all of it. It needs no other network namespace, and so no
// capability but CAP_NET_ADMIN. change must be one transaction (Remake).
func (t *Table) Try(change *Change) error {
	if err := t.prepare(change, nil); err != nil {
		return err
	}
	t.conn.DelTable(&nftables.Table{Family: t.nft.Family, Name: t.spec.Name + "-nowhere"})
	err := t.flush()
	if err == nil {
		return fmt.Errorf("trying a change to the %s: the kernel made it", t)
	}
	causes := leaves(err)
	if len(causes) == 1 && errors.Is(causes[0], unix.ENOENT) {
		return nil
	}
	return err
}

// leaves returns the errors at the ends of a tree of errors.
func leaves(err error) []error {
	switch e := err.(type) { //nolint:errorlint // the tree is walked here
	case interface{ Unwrap() []error }:
		var out []error
		for _, one := range e.Unwrap() {
			out = append(out, leaves(one)...)
		}
		return out
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return leaves(inner)
		}
	}
	return []error{err}
}

// prepare puts the steps of a change into the transaction to come.
func (t *Table) prepare(change *Change, note func(chain string) string) error {
	if err := t.open(); err != nil {
		return err
	}
	if note == nil {
		note = func(string) string { return "" }
	}
	if err := t.makeSets(change); err != nil {
		return err
	}
	if err := t.writeChains(change.Chains, note); err != nil {
		return err
	}
	if err := t.writeElements(change); err != nil {
		return err
	}
	for _, name := range change.OldChains { // one may lead to another
		t.conn.FlushChain(&nftables.Chain{Table: t.nft, Name: name})
	}
	for _, name := range change.OldChains {
		t.conn.DelChain(&nftables.Chain{Table: t.nft, Name: name})
		t.counts.Rules++
	}
	return nil
}

// makeSets makes sets, and the table if it is to be made.
func (t *Table) makeSets(change *Change) error {
	names := change.Sets
	if change.Remake {
		if change.Present {
			t.conn.DelTable(t.nft)
		}
		t.conn.AddTable(t.nft)
		names = nil
		for _, kind := range t.spec.Sets {
			names = append(names, kind.Name)
		}
	}
	for _, name := range names {
		if err := t.conn.AddSet(t.sets[name], nil); err != nil {
			return fmt.Errorf("making the set %s of the %s: %w", name, t, err)
		}
	}
	return nil
}

// writeChains makes all chains before the first rule, as rules lead to them.
func (t *Table) writeChains(chains map[string][]Rule, note func(string) string) error {
	names := slices.Sorted(maps.Keys(chains))
	for _, name := range names {
		chain := &nftables.Chain{Table: t.nft, Name: name}
		if h, ok := t.spec.Hooks[name]; ok {
			accept := nftables.ChainPolicyAccept
			chain.Hooknum, chain.Priority, chain.Type, chain.Policy = h.Hook, h.Priority, h.Type, &accept
		}
		t.conn.AddChain(chain)
		t.conn.FlushChain(chain)
	}
	for _, name := range names {
		comments, err := t.Comments(chains[name], note(name))
		if err != nil {
			return fmt.Errorf("writing chain %s: %w", name, err)
		}
		for i, rule := range chains[name] {
			t.conn.AddRule(&nftables.Rule{
				Table: t.nft, Chain: &nftables.Chain{Table: t.nft, Name: name}, Exprs: rule,
				UserData: userdata.AppendString(nil, userdata.Type(0), comments[i]),
			})
			t.counts.Rules++
		}
	}
	return nil
}

// Comments returns what the rules of a chain carry when they are as wanted.
func (t *Table) Comments(chain []Rule, note string) ([]string, error) {
	out := make([]string, 0, len(chain))
	for i, rule := range chain {
		text, err := rule.Signature(t.Family)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		out = append(out, text+note)
	}
	return out, nil
}

// writeElements writes the elements set by set, in the order of the Spec.
func (t *Table) writeElements(change *Change) error {
	put, removed := bySet(maps.Keys(change.Put)), bySet(slices.Values(change.Remove))
	pending := 0
	var come []nftables.SetElement // one room for all: the library encodes them at once
	for _, kind := range t.spec.Sets {
		set := t.sets[kind.Name]
		for chunk := range slices.Chunk(removed[kind.Name], elementsAMessage) {
			if err := t.send(set, t.elements(nil, chunk, nil), nil, &pending); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(put[kind.Name], elementsAMessage) {
			come = t.elements(come[:0], chunk, change.Put)
			if err := t.send(set, t.elements(nil, change.replacedOf(chunk), nil), come, &pending); err != nil {
				return err
			}
			if pending > elementsAWrite && !change.Remake {
				pending = 0
				if err := t.flush(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bySet sorts elements by their sets. It counts them first: there may be hundreds of
// thousands.
func bySet(all iter.Seq[Element]) map[string][]Element {
	counts := map[string]int{}
	for e := range all {
		counts[e.Set]++
	}
	out := make(map[string][]Element, len(counts))
	for set, n := range counts {
		out[set] = make([]Element, 0, n)
	}
	for e := range all {
		out[e.Set] = append(out[e.Set], e)
	}
	return out
}

// replacedOf returns those of some elements that are there with other data.
func (c *Change) replacedOf(some []Element) []Element {
	if len(c.Replaced) == 0 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(some), func(e Element) bool { return !c.Replaced[e] })
}

// elements adds some as the library takes them to out, with their data if there is any.
func (t *Table) elements(out []nftables.SetElement, some []Element, data map[Element]string) []nftables.SetElement {
	out = slices.Grow(out, len(some))
	for _, e := range some {
		out = append(out, t.element(e, data[e]))
	}
	return out
}

// send adds to the transaction that elements of a set go, and then that others come.
func (t *Table) send(set *nftables.Set, gone, come []nftables.SetElement, pending *int) error {
	t.counts.Elements += len(gone) + len(come)
	*pending += len(gone) + len(come)
	var errs []error
	if len(gone) > 0 {
		errs = append(errs, t.conn.SetDeleteElements(set, gone))
	}
	if len(come) > 0 {
		errs = append(errs, t.conn.SetAddElements(set, come))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("writing the set %s of the %s: %w", set.Name, t, err)
	}
	return nil
}

// element is one as the library takes it.
func (t *Table) element(e Element, data string) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.Key)}
	kind := t.kinds[e.Set]
	if kind.Intervals {
		out.Key, out.KeyEnd = []byte(e.Key[:len(e.Key)/2]), []byte(e.Key[len(e.Key)/2:])
	}
	if kind.Data != nftables.TypeVerdict {
		out.Val = []byte(data)
		return out
	}
	if data != "" {
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: data}
		if kind.Returns {
			out.VerdictData.Kind = expr.VerdictJump
		}
	}
	return out
}

package nft

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Sizes of what goes to the kernel at once.
const (
	elementsAMessage = 400    // an attribute holds 64 KiB
	elementsAWrite   = 50_000 // some 5 MB of socketBuffer
)

// Change is what to write. It happens in this order, in one transaction unless
// it has more than 50,000 elements.
type Change struct {
	Remake    bool // remove the table, if it is Present, and make it anew
	Present   bool
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

// Empty reports whether there is nothing to write.
func (c *Change) Empty() bool {
	return !c.Remake && len(c.Chains) == 0 && len(c.Put) == 0 && len(c.Remove) == 0 && len(c.OldChains) == 0
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
	if err := t.open(); err != nil {
		return err
	}
	if note == nil {
		note = func(string) string { return "" }
	}
	if change.Remake {
		if err := t.remake(change.Present); err != nil {
			return err
		}
	}
	if err := t.writeChains(change.Chains, note); err != nil {
		return err
	}
	if err := t.writeElements(change); err != nil {
		return err
	}
	for _, name := range change.OldChains {
		t.conn.DelChain(&nftables.Chain{Table: t.nft, Name: name})
		t.counts.Rules++
	}
	return t.flush()
}

func (t *Table) remake(present bool) error {
	if present {
		t.conn.DelTable(t.nft)
	}
	t.conn.AddTable(t.nft)
	for _, kind := range t.spec.Sets {
		if err := t.conn.AddSet(t.sets[kind.Name], nil); err != nil {
			return fmt.Errorf("making the set %s of the %s: %w", kind.Name, t, err)
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
			chain.Hooknum, chain.Priority, chain.Type = h.Hook, h.Priority, h.Type
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
// Elements that get other data are replaced in one transaction.
func (t *Table) writeElements(change *Change) error {
	put, replaced, removed := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	for e, data := range change.Put {
		put[e.Set] = append(put[e.Set], t.element(e, data))
		if change.Replaced[e] {
			replaced[e.Set] = append(replaced[e.Set], t.element(e, ""))
		}
	}
	for _, e := range change.Remove {
		removed[e.Set] = append(removed[e.Set], t.element(e, ""))
	}
	pending := 0
	for _, kind := range t.spec.Sets {
		for _, step := range []struct {
			elements []nftables.SetElement
			do       func(*nftables.Set, []nftables.SetElement) error
		}{
			{replaced[kind.Name], t.conn.SetDeleteElements},
			{removed[kind.Name], t.conn.SetDeleteElements},
			{put[kind.Name], t.conn.SetAddElements},
		} {
			for chunk := range slices.Chunk(step.elements, elementsAMessage) {
				if err := step.do(t.sets[kind.Name], chunk); err != nil {
					return fmt.Errorf("writing the set %s of the %s: %w", kind.Name, t, err)
				}
				t.counts.Elements += len(chunk)
				if pending += len(chunk); pending > elementsAWrite {
					pending = 0
					if err := t.flush(); err != nil {
						return err
					}
				}
			}
		}
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

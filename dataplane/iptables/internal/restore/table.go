package restore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// Table is what the kernel holds of one table, as far as it is ours.
type Table struct {
	Chains map[string]string // our chains: their rules, as in Chain
	Jumps  []ForeignRule     // rules of other chains that lead to ours
	// Unread is why only the outline is known, and not the rules. Nil means that all is.
	Unread error

	owns func(chain string) bool
	name string // while reading: the chain whose rules are read, if it is ours
	body bytes.Buffer
}

// ForeignRule is a rule of a chain that is not ours.
type ForeignRule struct {
	Chain  string
	Rule   string
	Handle uint64 // the kernel's number for it where its text is not known, or 0
}

func newTable(owns func(chain string) bool) *Table {
	return &Table{owns: owns, Chains: map[string]string{}}
}

// line reads one line of the table.
func (t *Table) line(line []byte) {
	switch {
	case bytes.HasPrefix(line, []byte(":")):
		chain, _, _ := bytes.Cut(line[1:], []byte(" "))
		if t.owns(string(chain)) {
			t.Chains[string(chain)] = ""
		}
	case bytes.HasPrefix(line, []byte("-A ")):
		chain, rule, _ := bytes.Cut(line[3:], []byte(" "))
		if string(chain) != t.name {
			t.end()
			if t.owns(string(chain)) {
				t.name = string(chain)
			}
		}
		if t.name != "" {
			t.body.Write(rule)
			t.body.WriteByte('\n')
		} else if target := TargetOf(string(rule)); t.owns(target) {
			t.Jumps = append(t.Jumps, ForeignRule{Chain: string(chain), Rule: string(rule)})
		}
	}
}

// end closes the chain whose rules came last.
func (t *Table) end() {
	if t.name != "" {
		t.Chains[t.name] += t.body.String()
	}
	t.name = ""
	t.body.Reset()
}

// RemoveAll adds the removal of all that is ours.
func (t *Table) RemoveAll(w *TableWrites) {
	w.Remove = slices.Sorted(maps.Keys(t.Chains))
	for _, j := range t.Jumps {
		if isBuiltin(j.Chain) {
			w.Delete = append(w.Delete, j)
		}
	}
}

// Differs reports whether a wanted chain must be written, and whether it is there.
func (t *Table) Differs(c Chain) (differs, there bool) {
	have, there := t.Chains[c.Name]
	return !there || !equalRules(c.Body, have), there
}

// Repair adds what makes the table as wanted, apart from the chains that differ: the
// jumps that are missing, and the removal of chains and jumps that are not wanted.
func (t *Table) Repair(wanted map[string]bool, jumps []Jump, w *TableWrites) {
	for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
		if !wanted[name] {
			w.Remove = append(w.Remove, name)
		}
	}
	missing := map[ForeignRule]bool{}
	for _, j := range jumps {
		missing[t.form(j.From, j.Rule())] = true
	}
	for _, have := range t.Jumps {
		if form := t.form(have.Chain, have.Rule); missing[form] {
			delete(missing, form)
		} else if isBuiltin(have.Chain) {
			w.Delete = append(w.Delete, have) // an older form, or a second one
		}
	}
	for _, j := range jumps {
		if missing[t.form(j.From, j.Rule())] {
			w.Insert = append(w.Insert, j)
		}
	}
}

// form returns what tells one jump from another: its text or, where that is not known,
// where it leads.
func (t *Table) form(chain, rule string) ForeignRule {
	if t.Unread != nil {
		rule = "-j " + TargetOf(rule)
	}
	return ForeignRule{Chain: chain, Rule: rule}
}

// errIncompatible says that iptables does not list a table. It still writes it.
var errIncompatible = errors.New("another program keeps rules there that iptables cannot list")

// unknownRule stands for the rules of a chain that only the outline tells of.
const unknownRule = "?\n"

// outline reads what the kernel says of a table that iptables-nft cannot list:
// our chains, and which rules lead to them.
func (t *Table) outline(f dataplane.Family, table string) error {
	o, err := nft.ReadOutline(f, table)
	if err != nil {
		return fmt.Errorf("%w; nor by netlink: %w", t.Unread, err)
	}
	clear(t.Chains)
	t.Jumps = nil
	for _, chain := range o.Chains {
		if t.owns(chain) {
			t.Chains[chain] = unknownRule
		}
	}
	for _, r := range o.Rules {
		rule := "-j " + r.Target
		if _, ours := t.Chains[r.Chain]; ours {
			t.Chains[r.Chain] += rule + "\n"
		} else if t.owns(r.Target) {
			t.Jumps = append(t.Jumps, ForeignRule{Chain: r.Chain, Rule: rule, Handle: r.Handle})
		}
	}
	return nil
}

// KeepUsed forgets the chains that others' chains lead to, and returns their names.
func (t *Table) KeepUsed() []string {
	var used []string
	var keep func(chain string)
	keep = func(chain string) {
		body, ours := t.Chains[chain]
		if !ours {
			return
		}
		used = append(used, chain)
		delete(t.Chains, chain)
		for rule := range strings.Lines(body) {
			keep(TargetOf(strings.TrimSpace(rule)))
		}
	}
	for _, j := range t.Jumps {
		if !isBuiltin(j.Chain) {
			keep(TargetOf(j.Rule))
		}
	}
	t.Jumps = slices.DeleteFunc(t.Jumps, func(j ForeignRule) bool { return slices.Contains(used, TargetOf(j.Rule)) })
	return used
}

// Leads reports whether a built-in chain jumps to one of ours.
func (t *Table) Leads(from, to string) bool {
	return slices.ContainsFunc(t.Jumps, func(r ForeignRule) bool { return r.Chain == from && TargetOf(r.Rule) == to })
}

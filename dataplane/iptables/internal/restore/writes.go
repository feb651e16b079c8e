package restore

import (
	"bytes"
	"maps"
	"slices"
)

// Tables of iptables.
const (
	NAT    = "nat"
	Filter = "filter"
	Mangle = "mangle"
)

// Chain is a chain with its rules, each without "-A name" and with a newline,
// as iptables-save writes them.
type Chain struct {
	Name string
	Body string
	// Rank orders chains: each leads only to chains of a lower rank, or of its own
	// rank and before it.
	Rank int
	// Fresh means that the kernel does not hold it yet, so that nothing leads to it.
	Fresh bool
}

// Writes are what one run of iptables-restore does, by table. The filter table comes
// first: it enforces what the nat table decides.
type Writes struct {
	Tables map[string]*TableWrites
}

// TableWrites are what is done to one table, in one step.
type TableWrites struct {
	Write  []Chain
	Remove []string      // chains
	Insert []Jump        // into built-in chains, at the top
	Delete []ForeignRule // from built-in chains
}

// Table returns what is done to one table, to be added to.
func (w *Writes) Table(name string) *TableWrites {
	t, ok := w.Tables[name]
	if !ok {
		if w.Tables == nil {
			w.Tables = map[string]*TableWrites{}
		}
		t = &TableWrites{}
		w.Tables[name] = t
	}
	return t
}

// Empty reports whether there is nothing to do.
func (w *Writes) Empty() bool { return len(w.Tables) == 0 }

// Text returns the input for iptables-restore. Within a table it first makes or empties
// all chains that it names, then fills them, leads to them, and removes chains last.
// The kernel sees a table's changes at once.
func (w *Writes) Text() []byte {
	var b bytes.Buffer
	for _, name := range []string{Filter, NAT, Mangle} {
		if t, ok := w.Tables[name]; ok {
			t.text(&b, name)
		}
	}
	return b.Bytes()
}

func (t *TableWrites) text(b *bytes.Buffer, name string) {
	size := 64
	for _, c := range t.Write {
		size += len(c.Body) + (bytes.Count([]byte(c.Body), []byte("\n"))+2)*(len(c.Name)+12)
	}
	b.Grow(size)
	b.WriteString("*" + name + "\n")
	for _, c := range t.Write {
		b.WriteString(":" + c.Name + " - [0:0]\n")
	}
	for _, c := range t.Remove {
		b.WriteString(":" + c + " - [0:0]\n")
	}
	for _, c := range t.Write {
		WriteRules(b, c)
	}
	for _, d := range t.Delete {
		if d.Handle == 0 {
			b.WriteString("-D " + d.Chain + " " + d.Rule + "\n")
		}
	}
	for _, j := range t.Insert {
		b.WriteString("-I " + j.From + " 1 " + j.Rule() + "\n")
	}
	for _, c := range t.Remove {
		b.WriteString("-X " + c + "\n")
	}
	b.WriteString("COMMIT\n")
}

// WriteRules appends the rules of a chain.
func WriteRules(b *bytes.Buffer, c Chain) {
	for rest := c.Body; rest != ""; {
		end := len(rest)
		for i := range len(rest) {
			if rest[i] == '\n' {
				end = i + 1
				break
			}
		}
		b.WriteString("-A ")
		b.WriteString(c.Name)
		b.WriteByte(' ')
		b.WriteString(rest[:end])
		rest = rest[end:]
	}
}

// Size returns how much is written, for the log.
func (w *Writes) Size() (chains, rules int) {
	for _, t := range w.Tables {
		chains += len(t.Write) + len(t.Remove)
		rules += len(t.Insert) + len(t.Delete)
		for _, c := range t.Write {
			rules += bytes.Count([]byte(c.Body), []byte("\n"))
		}
	}
	return chains, rules
}

// Trim forgets the tables that stay as they are.
func (w *Writes) Trim() {
	maps.DeleteFunc(w.Tables, func(_ string, t *TableWrites) bool {
		return len(t.Write) == 0 && len(t.Remove) == 0 && len(t.Insert) == 0 && len(t.Delete) == 0
	})
}

// KeepStale takes the removal of chains out, and returns their names.
func (w *Writes) KeepStale() []string {
	var stale []string
	for _, t := range w.Tables {
		stale = append(stale, t.Remove...)
		t.Remove = nil
	}
	w.Trim()
	return stale
}

// StageSize is about how many chains go into one stage. iptables-nft 1.8.9
// looks up each rule's chain in a sorted list of all chains that the input
// names, from its start: 13,000 chains with 130,000 rules take 30 s in one go
// and 6 s in stages.
const StageSize = 500

// stages parts large writes: first the chains that nothing leads to yet, in
// groups that can be written one after the other; last all the rest, which
// switches over in one step.
func (w *Writes) stages() []*Writes {
	var out []*Writes
	rest := &Writes{Tables: maps.Clone(w.Tables)}
	for _, name := range []string{Filter, NAT} {
		t, ok := w.Tables[name]
		if !ok || len(t.Write) < 2*StageSize {
			continue
		}
		last := *t
		last.Write = nil
		var fresh []Chain
		for _, c := range t.Write {
			if c.Fresh {
				fresh = append(fresh, c)
			} else {
				last.Write = append(last.Write, c)
			}
		}
		rest.Tables[name] = &last
		slices.SortStableFunc(fresh, func(a, b Chain) int { return a.Rank - b.Rank })
		for group := range slices.Chunk(fresh, StageSize) {
			stage := &Writes{}
			stage.Table(name).Write = group
			out = append(out, stage)
		}
	}
	return append(out, rest)
}

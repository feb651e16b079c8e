package iptables

import (
	"bytes"
	"maps"
	"slices"
)

// transaction is the input of one iptables-restore, by table. The filter table
// comes first: it enforces what the nat table decides.
type transaction struct {
	tables map[string]*tableText
}

type tableText struct {
	write   []chain
	remove  []string
	inserts []jump        // into built-in chains, at the top
	deletes []builtinRule // from them
}

func newTransaction(d *delta) *transaction {
	tx := &transaction{}
	for table, chains := range d.write {
		tx.table(table).write = chains
	}
	for table, names := range d.remove {
		tx.table(table).remove = names
	}
	return tx
}

func (tx *transaction) table(name string) *tableText {
	t, ok := tx.tables[name]
	if !ok {
		if tx.tables == nil {
			tx.tables = map[string]*tableText{}
		}
		t = &tableText{}
		tx.tables[name] = t
	}
	return t
}

func (tx *transaction) empty() bool { return len(tx.tables) == 0 }

// text writes the transaction. Within a table: all chains that it names are
// made or emptied, filled, led to, and those to be removed are removed last.
// The kernel sees a table's changes at once.
func (tx *transaction) text() []byte {
	var b bytes.Buffer
	for _, name := range []string{tableFilter, tableNAT, tableMangle} {
		if t, ok := tx.tables[name]; ok {
			t.text(&b, name)
		}
	}
	return b.Bytes()
}

func (t *tableText) text(b *bytes.Buffer, name string) {
	size := 64
	for _, c := range t.write {
		size += len(c.body) + (bytes.Count([]byte(c.body), []byte("\n"))+2)*(len(c.name)+12)
	}
	b.Grow(size)
	b.WriteString("*" + name + "\n")
	for _, c := range t.write {
		b.WriteString(":" + c.name + " - [0:0]\n")
	}
	for _, c := range t.remove {
		b.WriteString(":" + c + " - [0:0]\n")
	}
	for _, c := range t.write {
		writeRules(b, c)
	}
	for _, d := range t.deletes {
		if d.handle == 0 {
			b.WriteString("-D " + d.chain + " " + d.rule + "\n")
		}
	}
	for _, j := range t.inserts {
		b.WriteString("-I " + j.from + " 1 " + j.rule() + "\n")
	}
	for _, c := range t.remove {
		b.WriteString("-X " + c + "\n")
	}
	b.WriteString("COMMIT\n")
}

func writeRules(b *bytes.Buffer, c chain) {
	for rest := c.body; rest != ""; {
		end := len(rest)
		for i := range len(rest) {
			if rest[i] == '\n' {
				end = i + 1
				break
			}
		}
		b.WriteString("-A ")
		b.WriteString(c.name)
		b.WriteByte(' ')
		b.WriteString(rest[:end])
		rest = rest[end:]
	}
}

// size tells how much a transaction writes, for the log.
func (tx *transaction) size() (chains, rules int) {
	for _, t := range tx.tables {
		chains += len(t.write) + len(t.remove)
		rules += len(t.inserts) + len(t.deletes)
		for _, c := range t.write {
			rules += bytes.Count([]byte(c.body), []byte("\n"))
		}
	}
	return chains, rules
}

// trim forgets the tables that stay as they are.
func (tx *transaction) trim() {
	maps.DeleteFunc(tx.tables, func(_ string, t *tableText) bool {
		return len(t.write) == 0 && len(t.remove) == 0 && len(t.inserts) == 0 && len(t.deletes) == 0
	})
}

// keepStale takes the removal of chains out, and tells of which.
func (tx *transaction) keepStale() []string {
	var stale []string
	for _, t := range tx.tables {
		stale = append(stale, t.remove...)
		t.remove = nil
	}
	tx.trim()
	return stale
}

// stageSize is about how many chains go into one stage. iptables-nft 1.8.9
// looks up each rule's chain in a sorted list of all chains that the input
// names, from its start: 13,000 chains with 130,000 rules take 30 s in one go
// and 6 s in stages.
const stageSize = 500

// stages parts a large transaction: first the chains that nothing leads to yet, in
// groups that can be written one after the other; last all the rest, which
// switches over in one step.
func (tx *transaction) stages() []*transaction {
	var out []*transaction
	rest := &transaction{tables: maps.Clone(tx.tables)}
	for _, name := range []string{tableFilter, tableNAT} {
		t, ok := tx.tables[name]
		if !ok || len(t.write) < 2*stageSize {
			continue
		}
		last := *t
		last.write = nil
		var fresh []chain
		for _, c := range t.write {
			if c.fresh {
				fresh = append(fresh, c)
			} else {
				last.write = append(last.write, c)
			}
		}
		rest.tables[name] = &last
		slices.SortStableFunc(fresh, func(a, b chain) int { return int(a.rank - b.rank) })
		for group := range slices.Chunk(fresh, stageSize) {
			stage := &transaction{}
			stage.table(name).write = group
			out = append(out, stage)
		}
	}
	return append(out, rest)
}

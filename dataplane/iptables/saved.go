package iptables

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// saved is a table as iptables-save printed it, as far as it is ours.
type saved struct {
	owns   func(chain string) bool
	chains map[string]string // our chains: their rules, as in chain
	jumps  []builtinRule     // rules of other chains that lead to ours
	unread error             // why only the outline is known, and not the rules; nil: all is

	name string // while reading: the chain whose rules come, if it is ours
	body bytes.Buffer
}

// builtinRule is a rule of a chain that is not ours.
type builtinRule struct {
	chain  string
	rule   string
	handle uint64 // in the kernel, where the rule's text is not known; else 0
}

func newSaved() *saved { return &saved{owns: isOwn, chains: map[string]string{}} }

// line takes one line of the table.
func (s *saved) line(line []byte) {
	switch {
	case bytes.HasPrefix(line, []byte(":")):
		chain, _, _ := bytes.Cut(line[1:], []byte(" "))
		if s.owns(string(chain)) {
			s.chains[string(chain)] = ""
		}
	case bytes.HasPrefix(line, []byte("-A ")):
		chain, rule, _ := bytes.Cut(line[3:], []byte(" "))
		if string(chain) != s.name {
			s.end()
			if s.owns(string(chain)) {
				s.name = string(chain)
			}
		}
		if s.name != "" {
			s.body.Write(rule)
			s.body.WriteByte('\n')
		} else if target := targetOf(string(rule)); s.owns(target) {
			s.jumps = append(s.jumps, builtinRule{chain: string(chain), rule: string(rule)})
		}
	}
}

// end closes the chain whose rules came last.
func (s *saved) end() {
	if s.name != "" {
		s.chains[s.name] += s.body.String()
	}
	s.name = ""
	s.body.Reset()
}

// targetOf is the chain that a rule jumps or goes to, or its target.
func targetOf(rule string) string {
	for _, flag := range []string{"-j ", "-g "} {
		i := strings.LastIndex(rule, flag)
		if i == 0 || i > 0 && rule[i-1] == ' ' {
			target, _, _ := strings.Cut(rule[i+len(flag):], " ")
			return target
		}
	}
	return ""
}

// removeAll notes the removal of all that is ours.
func (s *saved) removeAll(t *tableText) {
	t.remove = slices.Sorted(maps.Keys(s.chains))
	for _, j := range s.jumps {
		if isBuiltin(j.chain) {
			t.deletes = append(t.deletes, j)
		}
	}
}

// isBuiltin tells the chains that hooks call. A rule in them that leads to us is
// ours; one in another chain is its owner's business.
func isBuiltin(chain string) bool {
	switch chain {
	case "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING":
		return true
	}
	return false
}

// differs tells whether a wanted chain must be written, and whether it is there.
func (s *saved) differs(c chain) (differs, there bool) {
	have, there := s.chains[c.name]
	return !there || !equalRules(c.body, have), there
}

// repair notes, beside the chains that differ, what turns one table into the
// wanted one: jumps that are missing, and chains and jumps that are too many.
func (s *saved) repair(table string, wanted map[string]bool, t *tableText) {
	for _, name := range slices.Sorted(maps.Keys(s.chains)) {
		if !wanted[name] {
			t.remove = append(t.remove, name)
		}
	}
	missing := map[builtinRule]bool{}
	for _, j := range jumps() {
		if j.table == table {
			missing[s.form(j.from, j.rule())] = true
		}
	}
	for _, have := range s.jumps {
		if form := s.form(have.chain, have.rule); missing[form] {
			delete(missing, form)
		} else if isBuiltin(have.chain) {
			t.deletes = append(t.deletes, have) // an older form, or a second one
		}
	}
	for _, j := range jumps() {
		if j.table == table && missing[s.form(j.from, j.rule())] {
			t.inserts = append(t.inserts, j)
		}
	}
}

// form is what tells one jump from another: its text or, where that is not known,
// where it leads.
func (s *saved) form(chain, rule string) builtinRule {
	if s.unread != nil {
		rule = "-j " + targetOf(rule)
	}
	return builtinRule{chain: chain, rule: rule}
}

// equalRules compares rules as we write them to rules as they were read back.
// We write as iptables 1.8.9 prints; other versions differ in trifles.
func equalRules(want, have string) bool {
	if want == have {
		return true
	}
	for want != "" && have != "" {
		var a, b string
		a, want, _ = strings.Cut(want, "\n")
		b, have, _ = strings.Cut(have, "\n")
		if a != b && !slices.Equal(plain(a), plain(b)) {
			return false
		}
	}
	return want == have
}

// plain is a rule's words without what says nothing: quotes, how a prefix is
// spelled, the mask of one, and protocols by number.
func plain(rule string) []string {
	var out []string
	words := strings.Fields(rule)
	for i := 0; i < len(words); i++ {
		w := strings.Trim(words[i], `"`)
		switch {
		case w == "--mask" && i+1 < len(words):
			i++
			continue
		case i > 0 && (words[i-1] == "-d" || words[i-1] == "-s"):
			if p, err := parsePrefix(w); err == nil { // one address has many spellings
				w = p.String()
			}
		case i > 0 && words[i-1] == "-p":
			if p := parseProtocol(w); p != 0 {
				w = strings.ToLower(p.String())
			}
		}
		out = append(out, w)
	}
	return out
}

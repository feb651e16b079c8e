package restore

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// ErrStrange says that a rule is not one that we write.
var ErrStrange = errors.New("a rule that Switchyard does not write")

// Rule is what a rule matches and where it leads, as far as Switchyard's rules go.
type Rule struct {
	Dst      netip.Prefix
	Protocol dataplane.Protocol
	Port     uint16 // 0 of a range
	Affinity bool   // it is for clients that were there before
	Target   string
	Goto     bool
	To       netip.AddrPort // of DNAT
}

// ParseRule reads a rule as iptables-save prints it, without "-A chain".
func ParseRule(line string) (Rule, error) {
	var r Rule
	words := strings.Fields(line)
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		var err error
		switch words[i] {
		case "--comment": // the text may contain anything
			i = endOfQuote(words, i+1)
		case "-d":
			r.Dst, err = parsePrefix(value)
		case "-p":
			r.Protocol = parseProtocol(value)
		case "--dport":
			if !strings.Contains(value, ":") {
				var port uint64
				port, err = strconv.ParseUint(value, 10, 16)
				r.Port = uint16(port)
			}
		case "--update":
			r.Affinity = true
		case "-j", "-g":
			r.Target, r.Goto = value, words[i] == "-g"
		case "--to-destination":
			r.To, err = netip.ParseAddrPort(value)
		}
		if err != nil {
			return Rule{}, fmt.Errorf("%w: %q: %w", ErrStrange, strings.TrimSpace(line), err)
		}
	}
	if r.Target == "" {
		return Rule{}, fmt.Errorf("%w: %q", ErrStrange, strings.TrimSpace(line))
	}
	return r, nil
}

// endOfQuote returns the index of the last word of a text that may be in quotes.
func endOfQuote(words []string, i int) int {
	if i >= len(words) || !strings.HasPrefix(words[i], `"`) {
		return i
	}
	for j := i; j < len(words); j++ {
		if strings.HasSuffix(words[j], `"`) && (j > i || len(words[j]) > 1) {
			return j
		}
	}
	return len(words)
}

func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen()), err
	}
	return netip.ParsePrefix(s)
}

func parseProtocol(s string) dataplane.Protocol {
	switch s {
	case "tcp", "6":
		return dataplane.TCP
	case "udp", "17":
		return dataplane.UDP
	case "sctp", "132":
		return dataplane.SCTP
	}
	return 0
}

// TargetOf returns the chain that a rule jumps or goes to, or its target.
func TargetOf(rule string) string {
	for _, flag := range []string{"-j ", "-g "} {
		i := strings.LastIndex(rule, flag)
		if i == 0 || i > 0 && rule[i-1] == ' ' {
			target, _, _ := strings.Cut(rule[i+len(flag):], " ")
			return target
		}
	}
	return ""
}

// isBuiltin reports whether hooks call a chain. A rule in them that leads to us is
// ours; one in another chain is its owner's business.
func isBuiltin(chain string) bool {
	switch chain {
	case "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING":
		return true
	}
	return false
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

// plain returns a rule's words without what says nothing: quotes, how a prefix is
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

// Comment returns the match that carries a comment. It keeps to
// characters that need no escape, and to the kernel's 255.
func Comment(text string) string {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || strings.ContainsRune("\"'`\\", c) {
			return '_'
		}
		return c
	}, text)
	return ` -m comment --comment "` + clean[:min(len(clean), 255)] + `"`
}

// Jump is a rule of a built-in chain that leads to one of ours.
type Jump struct {
	From, To string
	Comment  string
}

// Rule returns its text.
func (j Jump) Rule() string {
	return strings.TrimPrefix(Comment(j.Comment), " ") + " -j " + j.To
}

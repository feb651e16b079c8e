package hostfirewall

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

// Chains of the table filter: iptables' own, and ours that they jump to.
const (
	filter  = "filter"
	forward = "FORWARD"
	input   = "INPUT"
	// The iptables backend takes chains whose names begin with SWITCHYARD- for its own.
	openForward = "OPEN-SWITCHYARD-FORWARD"
	openInput   = "OPEN-SWITCHYARD-INPUT"
	lockSeconds = 2 // the longest wait for the xtables lock
	jumpFirst   = 1 // position of our jump: before whatever drops
)

// table is the filter table of one variant of iptables and one family.
type table struct {
	command string // its program
	family  dataplane.Family
	outline *nft.Outline         // as the kernel has it; nil: it is of legacy iptables
	ipt     *goiptables.IPTables // nil until ready
}

// tables returns those that are in use. It runs no command: asking legacy's program
// for a table that does not exist would load its module, and nft's would make the table.
func tables(families []dataplane.Family) ([]*table, error) {
	var out []*table
	var errs []error
	for _, f := range families {
		command := "iptables"
		if f == dataplane.IPv6 {
			command = "ip6tables"
		}
		outline, err := nft.ReadOutline(f, filter)
		if err != nil {
			errs = append(errs, err)
		} else if len(outline.Chains) > 0 {
			out = append(out, &table{command: command + "-nft", family: f, outline: outline})
		}
		if slices.Contains(xtables.LegacyTables(f), filter) {
			out = append(out, &table{command: command + "-legacy", family: f})
		}
	}
	return out, errors.Join(errs...)
}

// readyTables returns the tables that are in use and whose program works.
func readyTables(families []dataplane.Family) ([]*table, error) {
	found, err := tables(families)
	errs := []error{err}
	found = slices.DeleteFunc(found, func(t *table) bool {
		err := t.ready()
		errs = append(errs, err)
		return err != nil
	})
	return found, errors.Join(errs...)
}

// ready finds the table's program.
func (t *table) ready() error {
	proto := goiptables.ProtocolIPv4
	if t.family == dataplane.IPv6 {
		proto = goiptables.ProtocolIPv6
	}
	var err error
	t.ipt, err = goiptables.New(goiptables.IPFamily(proto), goiptables.Path(t.command), goiptables.Timeout(lockSeconds))
	if errors.Is(err, exec.ErrNotFound) {
		err = fmt.Errorf("its rules may drop Services' connections, and %s is not installed", t.command)
	}
	if err != nil {
		return fmt.Errorf("table %s of %s: %w", filter, t.command, err)
	}
	return nil
}

// drops reports what drops the rest of what comes to a chain, in iptables'
// words; empty: nothing does, or there is no such chain. A chain that iptables
// cannot list, because another program wrote rules that it does not understand,
// counts as one that drops.
func (t *table) drops(chain string) (string, error) {
	there, err := t.has(chain)
	if err != nil || !there {
		return "", err
	}
	what, err := dropsRest(chain, func(chain string) ([]string, error) { return t.ipt.List(filter, chain) })
	if err != nil && t.outline != nil {
		return chain + " with rules that " + t.command + " does not understand", nil
	}
	if err != nil {
		return "", fmt.Errorf("listing chain %s of %s: %w", chain, t.command, err)
	}
	return what, nil
}

// has reports whether the table has a chain.
func (t *table) has(chain string) (bool, error) {
	if t.outline == nil {
		return t.ipt.ChainExists(filter, chain)
	}
	return slices.Contains(t.outline.Chains, chain), nil
}

// jumps reports whether a chain leads to one of ours.
func (t *table) jumps(chain, ours string) (bool, error) {
	if t.outline == nil {
		return t.ipt.Exists(filter, chain, "-j", ours)
	}
	return slices.ContainsFunc(t.outline.Rules, func(r nft.OutlineRule) bool { return r.Chain == chain && r.Target == ours }), nil
}

// search looks for a rule that drops whatever nobody accepted.
type search struct {
	list    func(chain string) ([]string, error)
	comment *regexp.Regexp
	seen    map[string]bool // chains that were looked at: each costs a process
}

// dropsRest looks for a policy, or for a rule that drops whatever nobody accepted:
// in the chain itself, or in one that it leads to. It returns the line of the chain.
func dropsRest(chain string, list func(chain string) ([]string, error)) (string, error) {
	lines, err := list(chain)
	if err != nil {
		return "", err
	}
	if slices.Contains(lines, "-P "+chain+" DROP") {
		return "-P " + chain + " DROP", nil
	}
	s := &search{list: list, comment: regexp.MustCompile(` -m comment --comment ("(\\.|[^"\\])*"|\S+)`), seen: map[string]bool{chain: true}}
	return s.line(chain, lines), nil
}

// line returns the first line of a chain that drops the rest, or leads to one that does.
func (s *search) line(chain string, lines []string) string {
	for _, line := range lines {
		if target, ok := s.targetOfAll(chain, line); ok && s.targetDrops(target) {
			return line
		}
	}
	return ""
}

// targetDrops reports whether a rule's target drops, or a chain of that name does.
func (s *search) targetDrops(target string) bool {
	if target == "DROP" || target == "REJECT" {
		return true
	}
	if isExtension(target) || target == openForward || target == openInput || s.seen[target] {
		return false
	}
	s.seen[target] = true
	lines, err := s.list(target)
	return err == nil && s.line(target, lines) != "" // an error: an extension that isExtension does not know
}

// isExtension reports whether a target is known to be no chain.
func isExtension(target string) bool {
	return slices.Contains([]string{"ACCEPT", "RETURN", "LOG", "NFLOG", "MARK", "CONNMARK", "QUEUE", "NFQUEUE", "TCPMSS", "AUDIT", "CT", "TRACE"}, target)
}

// targetOfAll returns where a rule of a chain leads that names no address and no
// port, so that a Service's connection may match it: by a device, a protocol or the
// state of its connection at most.
func (s *search) targetOfAll(chain, line string) (target string, ok bool) {
	rest, ok := strings.CutPrefix(s.comment.ReplaceAllString(line, ""), "-A "+chain+" ")
	if !ok {
		return "", false
	}
	words := strings.Fields(rest)
	for i := 0; i+1 < len(words); i++ {
		word, value := words[i], words[i+1]
		switch {
		case word == "!":
			continue
		case word == "-j" || word == "-g":
			return value, true
		case word == "-i" || word == "-o":
		case word == "-p" && slices.Contains([]string{"tcp", "udp", "sctp", "all"}, value):
		case word == "-m" && slices.Contains([]string{"conntrack", "state", "tcp", "udp", "sctp"}, value):
		case word == "--ctstate" || word == "--state":
			if not := i > 0 && words[i-1] == "!"; not == slices.Contains(strings.Split(value, ","), "NEW") {
				return "", false // new connections do not match
			}
		default:
			return "", false
		}
		i++
	}
	return "", false
}

// open makes a chain of ours have these rules, and iptables' own jump to it.
func (t *table) open(chain, ours string, rules []string) error {
	if exists, err := t.has(ours); err != nil {
		return fmt.Errorf("looking for chain %s of %s: %w", ours, t.command, err)
	} else if !exists {
		if err := t.ipt.NewChain(filter, ours); err != nil {
			return fmt.Errorf("making chain %s of %s: %w", ours, t.command, err)
		}
	}
	have, err := t.ipt.List(filter, ours)
	if err != nil {
		return fmt.Errorf("listing chain %s of %s: %w", ours, t.command, err)
	}
	for _, rule := range rules {
		// To ask for each rule would cost a process for each health check, at each look.
		if slices.Contains(have, "-A "+ours+" "+rule) {
			continue
		}
		if err := t.ipt.AppendUnique(filter, ours, strings.Fields(rule)...); err != nil {
			return fmt.Errorf("adding %q to chain %s of %s: %w", rule, ours, t.command, err)
		}
	}
	for _, rule := range stale(ours, have, rules) {
		if err := t.ipt.DeleteIfExists(filter, ours, strings.Fields(rule)...); err != nil {
			return fmt.Errorf("removing %q from chain %s of %s: %w", rule, ours, t.command, err)
		}
	}
	jumps, err := t.jumps(chain, ours)
	if err == nil && !jumps {
		err = t.ipt.Insert(filter, chain, jumpFirst, "-j", ours)
	}
	if err != nil {
		return fmt.Errorf("making chain %s of %s jump to %s: %w", chain, t.command, ours, err)
	}
	return nil
}

// stale are the rules for ports that are not wanted any more. The other rules
// never change.
func stale(chain string, have, want []string) []string {
	var out []string
	for _, line := range have {
		port, ok := portOf(line)
		if ok && !slices.Contains(want, acceptPort(port)) {
			out = append(out, strings.TrimPrefix(line, "-A "+chain+" "))
		}
	}
	return out
}

func acceptPort(port uint16) string { return fmt.Sprintf("-p tcp -m tcp --dport %d -j ACCEPT", port) }

func portOf(line string) (uint16, bool) {
	words := strings.Fields(line)
	i := slices.Index(words, "--dport")
	if i < 0 || i+1 == len(words) {
		return 0, false
	}
	n, err := strconv.ParseUint(words[i+1], 10, 16)
	return uint16(n), err == nil
}

// close removes a chain of ours and the jump to it, if they are there.
func (t *table) close(chain, ours string) error {
	exists, err := t.has(ours)
	if err != nil || !exists {
		return err
	}
	jumps, err := t.jumps(chain, ours)
	if err == nil && jumps {
		err = t.ipt.Delete(filter, chain, "-j", ours)
	}
	if err != nil {
		return fmt.Errorf("removing the jump from chain %s of %s to %s: %w", chain, t.command, ours, err)
	}
	if err := t.ipt.ClearAndDeleteChain(filter, ours); err != nil {
		return fmt.Errorf("removing chain %s of %s: %w", ours, t.command, err)
	}
	return nil
}

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
	"github.com/google/nftables"

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
	openForward  = "OPEN-SWITCHYARD-FORWARD"
	openInput    = "OPEN-SWITCHYARD-INPUT"
	lockSeconds  = 2 // the longest wait for the xtables lock
	jumpFirst    = 1 // position of our jump: before whatever drops
	legacySuffix = "-legacy"
)

// table is the filter table of one variant of iptables and one family.
type table struct {
	Command string // its program
	family  dataplane.Family
	legacy  bool
	ipt     *goiptables.IPTables
}

// tables returns those that are in use. To ask legacy's program for a table that
// is not would load its module, and nft's would make the table.
func tables(families []dataplane.Family) ([]table, error) {
	var out []table
	var errs []error
	for _, f := range families {
		command, proto := "iptables", goiptables.ProtocolIPv4
		if f == dataplane.IPv6 {
			command, proto = "ip6tables", goiptables.ProtocolIPv6
		}
		for _, variant := range []string{"-nft", legacySuffix} {
			used, err := inUse(f, variant)
			if err != nil {
				errs = append(errs, err)
			}
			if !used {
				continue
			}
			ipt, err := goiptables.New(goiptables.IPFamily(proto), goiptables.Path(command+variant), goiptables.Timeout(lockSeconds))
			if errors.Is(err, exec.ErrNotFound) {
				err = fmt.Errorf("its rules may drop Services' connections, and %s is not installed", command+variant)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("table %s of %s: %w", filter, command+variant, err))
				continue
			}
			out = append(out, table{command + variant, f, variant == legacySuffix, ipt})
		}
	}
	return out, errors.Join(errs...)
}

// inUse reports whether a variant of iptables has a filter table.
func inUse(f dataplane.Family, variant string) (bool, error) {
	if variant == legacySuffix {
		return slices.Contains(xtables.LegacyTables(f), filter), nil
	}
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	found, err := conn.ListTablesOfFamily(nft.TableFamily(f))
	if err != nil {
		return false, fmt.Errorf("listing nftables' tables: %w", err)
	}
	return slices.ContainsFunc(found, func(t *nftables.Table) bool { return t.Name == filter }), nil
}

// drops reports what drops the rest of what comes to a chain, in iptables'
// words; empty: nothing does, or there is no such chain. A chain that iptables
// cannot list, because another program wrote rules that it does not understand,
// counts as one that drops.
func (t table) drops(chain string) (string, error) {
	there, err := t.has(chain)
	if err != nil || !there {
		return "", err
	}
	what, err := dropsRest(chain, func(chain string) ([]string, error) { return t.ipt.List(filter, chain) })
	if err != nil && !t.legacy {
		return chain + " with rules that " + t.Command + " does not understand", nil
	}
	if err != nil {
		return "", fmt.Errorf("listing chain %s of %s: %w", chain, t.Command, err)
	}
	return what, nil
}

// has reports whether the table has a chain.
func (t table) has(chain string) (bool, error) {
	if t.legacy {
		return t.ipt.ChainExists(filter, chain)
	}
	o, err := nft.ReadOutline(t.family, filter)
	return err == nil && slices.Contains(o.Chains, chain), err
}

// jumps reports whether a chain leads to one of ours.
func (t table) jumps(chain, ours string) (bool, error) {
	if t.legacy {
		return t.ipt.Exists(filter, chain, "-j", ours)
	}
	o, err := nft.ReadOutline(t.family, filter)
	return err == nil && slices.ContainsFunc(o.Rules, func(r nft.OutlineRule) bool { return r.Chain == chain && r.Target == ours }), err
}

// mostJumps bounds how deep a look for a rule that drops follows jumps.
const mostJumps = 16

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
	return dropsRestBelow(chain, lines, list, mostJumps)
}

func dropsRestBelow(chain string, lines []string, list func(chain string) ([]string, error), jumps int) (string, error) {
	for _, line := range lines {
		target, ok := targetOfAll(chain, line)
		switch {
		case !ok || jumps == 0:
		case target == "DROP" || target == "REJECT":
			return line, nil
		case isExtension(target) || target == openForward || target == openInput:
		default:
			below, err := list(target)
			if err != nil {
				continue // an extension that isExtension does not know, and no chain
			}
			if what, err := dropsRestBelow(target, below, list, jumps-1); err != nil || what != "" {
				return line, err
			}
		}
	}
	return "", nil
}

// isExtension reports whether a target is known to be no chain.
func isExtension(target string) bool {
	return slices.Contains([]string{"ACCEPT", "RETURN", "LOG", "NFLOG", "MARK", "CONNMARK", "QUEUE", "NFQUEUE", "TCPMSS", "AUDIT", "CT", "TRACE"}, target)
}

// targetOfAll returns where a rule of a chain leads that names no address and no
// port, so that a Service's connection may match it: by a device, a protocol or the
// state of its connection at most.
func targetOfAll(chain, line string) (target string, ok bool) {
	comment := regexp.MustCompile(` -m comment --comment ("(\\.|[^"\\])*"|\S+)`)
	rest, ok := strings.CutPrefix(comment.ReplaceAllString(line, ""), "-A "+chain+" ")
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
func (t table) open(chain, ours string, rules []string) error {
	if exists, err := t.has(ours); err != nil {
		return fmt.Errorf("looking for chain %s of %s: %w", ours, t.Command, err)
	} else if !exists {
		if err := t.ipt.NewChain(filter, ours); err != nil {
			return fmt.Errorf("making chain %s of %s: %w", ours, t.Command, err)
		}
	}
	have, err := t.ipt.List(filter, ours)
	if err != nil {
		return fmt.Errorf("listing chain %s of %s: %w", ours, t.Command, err)
	}
	for _, rule := range rules {
		// To ask for each rule would cost a process for each health check, at each look.
		if slices.Contains(have, "-A "+ours+" "+rule) {
			continue
		}
		if err := t.ipt.AppendUnique(filter, ours, strings.Fields(rule)...); err != nil {
			return fmt.Errorf("adding %q to chain %s of %s: %w", rule, ours, t.Command, err)
		}
	}
	for _, rule := range stale(ours, have, rules) {
		if err := t.ipt.DeleteIfExists(filter, ours, strings.Fields(rule)...); err != nil {
			return fmt.Errorf("removing %q from chain %s of %s: %w", rule, ours, t.Command, err)
		}
	}
	jumps, err := t.jumps(chain, ours)
	if err == nil && !jumps {
		err = t.ipt.Insert(filter, chain, jumpFirst, "-j", ours)
	}
	if err != nil {
		return fmt.Errorf("making chain %s of %s jump to %s: %w", chain, t.Command, ours, err)
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
func (t table) close(chain, ours string) error {
	exists, err := t.has(ours)
	if err != nil || !exists {
		return err
	}
	jumps, err := t.jumps(chain, ours)
	if err == nil && jumps {
		err = t.ipt.Delete(filter, chain, "-j", ours)
	}
	if err != nil {
		return fmt.Errorf("removing the jump from chain %s of %s to %s: %w", chain, t.Command, ours, err)
	}
	if err := t.ipt.ClearAndDeleteChain(filter, ours); err != nil {
		return fmt.Errorf("removing chain %s of %s: %w", ours, t.Command, err)
	}
	return nil
}

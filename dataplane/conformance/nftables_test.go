package conformance

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/nftables"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

func nftablesColumn() column {
	return column{
		name: "nftables", backend: "nftables",
		driver: func(site) dataplane.Driver { return nftables.Driver() },
		state:  nftablesState,
		damage: []act{
			shellAct("nft flush chain ip switchyard services; nft flush chain ip6 switchyard services; true"),
			shellAct("nft flush map ip switchyard frontends; nft flush map ip6 switchyard ways; nft flush map ip6 switchyard endpoints; true"),
			shellAct("nft insert rule ip switchyard prerouting accept; nft add rule ip6 switchyard do-reject accept; true"),
			shellAct("nft 'add element ip switchyard sources { 192.0.2.1 . tcp . 80 . 0.0.0.0/0 }'; true"),
			shellAct("nft 'add table ip switchyard { flags dormant; }'; nft 'add chain ip6 switchyard prerouting { policy drop; }'; true"),
			shellAct("nft 'add chain ip switchyard theirs; add chain ip switchyard more; add rule ip switchyard more jump theirs; add set ip6 switchyard strange { type mark; }'; true"),
			shellAct("nft delete chain ip switchyard postrouting; nft 'flush chain ip6 switchyard postrouting; delete chain ip6 switchyard postrouting'; true"),
			shellAct("nft delete table ip switchyard; nft delete table ip6 switchyard; true"),
		},
		foreign:        slices.Concat(foreignRules("iptables-nft"), foreignTable()),
		withoutForeign: withoutForeignRules,
		remove:         removeFromTable,
		faults:         newCallFaults,
		refused: func(r *run) {
			r.notMeant("the kernel takes each Service that the agent gives it; TestRefused has one that it does not")
		},
	}
}

// nftablesState is our tables, and foreign rules.
func nftablesState(r *run, n *netlab.Node) []string {
	r.Helper()
	lines := nftLines(r.shell(n, "nft -s list ruleset"))
	slices.Sort(lines)
	return append(lines, rulesOf(r, n, "iptables-nft-save")...)
}

// removeFromTable removes a random rule or element of ours.
func removeFromTable(r *run, n *netlab.Node, random *rand.Rand) string {
	family := []string{"ip", "ip6"}[random.IntN(2)]
	lines := ruleLines
	if random.IntN(2) == 0 {
		lines = elementLines
	}
	commands := lines(r, n, family, "switchyard")
	if len(commands) == 0 {
		r.Fatal("there is nothing of ours to remove")
	}
	chosen := commands[random.IntN(len(commands))]
	r.shell(n, chosen)
	return chosen
}

// nftLines are the rules and elements of our tables, one a line, less what
// packets wrote; the order of the rules of a chain is in them.
func nftLines(ruleset string) []string {
	var lines []string
	table, block, at := "", "", 0
	elements := ""
	for line := range strings.Lines(ruleset) {
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(text, "table "):
			table = text
			if strings.Contains(text, "switchyard") || strings.Contains(text, "othermeter") {
				lines = append(lines, text)
			}
		case !strings.Contains(table, "switchyard"):
		case elements != "" || strings.HasPrefix(text, "elements = {"):
			elements += " " + strings.TrimPrefix(text, "elements = {")
			if !strings.HasSuffix(text, "}") {
				continue
			}
			for e := range strings.SplitSeq(strings.TrimSuffix(elements, "}"), ",") {
				if e = strings.TrimSpace(e); e != "" && block != "map affinity {" {
					lines = append(lines, table+" "+block+" "+e)
				}
			}
			elements = ""
		case strings.HasSuffix(text, "{"):
			block, at = text, 0
		case text != "}" && text != "":
			at++
			lines = append(lines, fmt.Sprintf("%s %s %d: %s", table, block, at, text))
		}
	}
	return lines
}

// ruleLines are commands that each delete one of our rules.
func ruleLines(r *run, n *netlab.Node, family, name string) []string {
	var commands []string
	table, chain := family+" "+name, ""
	for line := range strings.Lines(r.shell(n, "nft -a list table "+table)) {
		text, handle, _ := strings.Cut(strings.TrimSpace(line), " # handle ")
		f := strings.Fields(text)
		switch {
		case len(f) == 3 && f[2] == "{":
			chain = ""
			if f[0] == "chain" {
				chain = f[1]
			}
		case chain != "" && handle != "":
			commands = append(commands, fmt.Sprintf("nft delete rule %s %s handle %s", table, chain, handle))
		}
	}
	return commands
}

// elementLines are commands that each delete an element of one of our sets.
func elementLines(r *run, n *netlab.Node, family, name string) []string {
	table := "table " + family + " " + name + " {"
	attribute := regexp.MustCompile(`^\d+: [a-z]`) // a line of a set that is no element
	var commands []string
	for _, line := range nftLines(r.shell(n, "nft -s list table "+family+" "+name)) {
		rest, is := strings.CutPrefix(line, table+" ")
		f := strings.SplitN(rest, " ", 4) // set NAME { ELEMENT
		if !is || len(f) < 4 || f[0] != "set" && f[0] != "map" || f[2] != "{" || attribute.MatchString(f[3]) || strings.HasPrefix(f[1], "affinity") || f[1] == "learn" {
			continue
		}
		key, _, _ := strings.Cut(f[3], " : ")
		commands = append(commands, fmt.Sprintf("nft 'delete element %s %s %s { %s }'", family, name, f[1], key))
	}
	return commands
}

package conformance

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/internal/netlab"
)

// column is one backend, or one variant of one.
type column struct {
	name   string
	driver dataplane.Driver
	// dump are the commands that print the kernel's state, ours and foreign.
	dump []string
	// damage are things that another program may do to our state, each a shell
	// command.
	damage []string
	// foreign are commands that set up another program's state beside ours.
	foreign []string
	// refusal is how the command that loads rules says that the kernel will not
	// take the rule in a given line of its input.
	refusal func(line, lastLine int) string
}

// columns lists all of them, in the catalog's order.
func columns() []column {
	var all []column
	for _, mode := range []string{"nft", "legacy"} {
		for _, d := range catalog.Drivers(catalog.Options{IPTables: iptables.Options{Mode: mode}}) {
			if d.Name == "iptables" {
				all = append(all, iptablesColumn(mode, d))
			}
		}
	}
	return all
}

// columnNamed finds a column; the agent's process is told just the name.
func columnNamed(name string) (column, error) {
	for _, c := range columns() {
		if c.name == name {
			return c, nil
		}
	}
	return column{}, fmt.Errorf("there is no column %q", name)
}

func iptablesColumn(mode string, d dataplane.Driver) column {
	c := column{name: "iptables-" + mode, driver: d}
	v4, v6 := "iptables-"+mode, "ip6tables-"+mode
	for _, table := range []string{"raw", "mangle", "nat", "filter"} {
		c.dump = append(c.dump, v4+"-save -t "+table, v6+"-save -t "+table)
	}
	c.dump = append(c.dump, "nft list tables")
	for _, cmd := range []string{v4, v6} {
		c.foreign = append(c.foreign, foreignRules(cmd)...)
		c.damage = append(c.damage,
			cmd+" -t nat -F && "+cmd+" -t nat -X",
			cmd+" -t nat -F OUTPUT",
			cmd+" -t nat -F POSTROUTING",
			cmd+" -t filter -F",
			cmd+" -t nat -F",
		)
	}
	c.foreign = append(c.foreign, "nft add table inet othermeter", "nft add chain inet othermeter in { type filter hook input priority 5 \\; }", "nft add rule inet othermeter in counter")
	c.refusal = func(line, lastLine int) string {
		if mode == "nft" {
			return fmt.Sprintf("iptables-restore v1.8.9 (nf_tables): \nline %d: RULE_APPEND failed (Operation not supported)", line)
		}
		return fmt.Sprintf("iptables-restore: line %d failed", lastLine) // legacy tells just the line of COMMIT
	}
	return c
}

// foreignRules are another program's: its own chains, and rules in built-in
// chains before and after where ours may stand.
func foreignRules(cmd string) []string {
	icmp := "icmp"
	if strings.HasPrefix(cmd, "ip6") {
		icmp = "ipv6-icmp"
	}
	return []string{
		cmd + " -t nat -N OTHER-NAT",
		cmd + " -t nat -A OTHER-NAT -p " + icmp + " -j RETURN",
		cmd + " -t nat -A PREROUTING -j OTHER-NAT",
		cmd + " -t nat -A POSTROUTING -o nosuch0 -j MASQUERADE",
		cmd + " -t filter -N OTHER-FILTER",
		cmd + " -t filter -A OTHER-FILTER -p tcp --dport 9 -j DROP",
		cmd + " -t filter -I FORWARD -j OTHER-FILTER",
		cmd + " -t filter -A INPUT -p tcp --dport 9 -j DROP",
		cmd + " -t mangle -A FORWARD -p tcp --dport 9 -j MARK --set-xmark 0x1/0x1",
	}
}

// agentConfig is what the backends are told. families nil: both.
func agentConfig(log *slog.Logger, families []dataplane.Family) dataplane.Config {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if families == nil {
		families = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
	}
	return dataplane.Config{Log: log, Families: families, MasqueradeBit: 14, LocalhostNodePorts: true}
}

// dumpOf is the kernel's state on a node: rules without their counters, chains,
// tables; without built-in chains, which stay once a table was used.
func (c column) dumpOf(r *run, n *netlab.Node) []string {
	var lines []string
	for _, cmd := range c.dump {
		out := r.shell(n, cmd)
		table := ""
		for line := range strings.Lines(out) {
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "*"):
				table = line[1:]
			case line == "" || line == "COMMIT" || line[0] == '#':
			case line[0] == ':':
				name, policy, _ := strings.Cut(line[1:], " ")
				if strings.HasPrefix(policy, "-") || strings.HasPrefix(policy, "DROP") { // a chain of someone's own, or no default
					lines = append(lines, fmt.Sprintf("%s %s: :%s %s", strings.Fields(cmd)[0], table, name, strings.Fields(policy)[0]))
				}
			case line[0] == '-':
				lines = append(lines, fmt.Sprintf("%s %s: %s", strings.Fields(cmd)[0], table, line))
			case strings.HasPrefix(line, "table inet"):
				lines = append(lines, line)
			}
		}
	}
	return lines
}

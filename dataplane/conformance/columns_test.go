package conformance

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// column is one backend, or one variant of one.
type column struct {
	name    string
	backend string // the name of its driver
	driver  func(site) dataplane.Driver
	// elsewhere is where the column runs if this machine lacks what it needs; then
	// that is no failure, unless -backend names the column. "": everywhere.
	elsewhere string
	// base is the column whose backend this one's sockets are on top of; "": none.
	base string
	// sockets says that the backend translates sockets, so that who sits behind
	// its hooks is seen with its own address (docs/adr/0004).
	sockets bool
	// state is the kernel's state, ours and foreign, in lines that mean the same
	// whoever wrote it, in whatever order.
	state func(r *run, n *netlab.Node) []string
	// damage are things that another program may do to our state.
	damage []act
	// remove removes one random piece of our state and tells which; nil: damage is
	// all that there is to try.
	remove func(*run, *netlab.Node, *rand.Rand) string
	// foreign are what another program sets up beside ours; withoutForeign undoes it.
	foreign        []act
	withoutForeign func(r *run, n *netlab.Node)
	// mostClients returns how many clients with session affinity an endpoint remembers,
	// and why no more; nil: as many as there are.
	mostClients func() (most int, why string)
	// firewall is the command of the firewall that the backend opens for Services
	// (KUBE-PROXY §1.13); nil: it leaves that to the host.
	firewall func(dataplane.Family) string
	// left is what Cleanup should have removed and state does not tell; nil: nothing.
	left func(site) error
	// tell is what the kernel counted, for a case that failed; nil: nothing.
	tell func(r *run, n *netlab.Node) string
	// faults strikes the backend in the way that fits it.
	faults func(r *run) faults
	// refused has the kernel refuse a Service port.
	refused func(r *run)
	// refusal is how the command that loads rules says that the kernel will not
	// take the rule in a given line of its input.
	refusal func(line, lastLine int) string
}

// ownsConnections reports whether the backend has connections that conntrack does not
// judge: such a one does what kube-proxy does in the mode of the same mechanism.
func (c column) ownsConnections() bool { return c.driver(site{}).OwnsConnections }

const (
	predecessorColumn = "iptables-nft" // what the others take over from
	otherBase         = "iptables-nft" // what sockets are on top of in some cases; elsewhere it is the eBPF column's own
)

// site is what a backend is told about the node that it runs on: several nodes
// live on one kernel here.
type site struct {
	PinDir string // of eBPF maps and links
	Cgroup string // of the node's processes and its pods'
	// MaxEndpoints is the size of the maps of sockets; 0: the default.
	MaxEndpoints int
	// SocketLB is whose sockets are translated; "": all.
	SocketLB string
	// Base is the column whose backend sockets are on top of; "": the eBPF column's own.
	Base string
	// Excluded are addresses that the IPVS backend leaves to another program.
	Excluded []netip.Prefix
}

// act is something that is done to a node.
type act struct {
	name string
	do   func(r *run, n *netlab.Node)
}

// shellAct is a shell command.
func shellAct(command string) act {
	return act{command, func(r *run, n *netlab.Node) { r.shell(n, command) }}
}

// columns lists all of them, in the catalog's order.
func columns() []column {
	return []column{ebpfColumn(nftablesColumn()), nftablesColumn(), ipvsColumn(), iptablesColumn("nft"), iptablesColumn("legacy")}
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

func iptablesColumn(mode string) column {
	driver := iptables.Driver(iptables.Options{Mode: mode})
	c := column{
		name: "iptables-" + mode, backend: driver.Name,
		driver: func(site) dataplane.Driver { return driver },
		faults: newCommandFaults, refused: refusedPort, withoutForeign: withoutForeignRules,
	}
	v4, v6 := "iptables-"+mode, "ip6tables-"+mode
	c.firewall = func(f dataplane.Family) string {
		if f == dataplane.IPv4 {
			return v4
		}
		return v6
	}
	c.remove = removeRule(mode)
	c.mostClients = recentClients
	c.state = func(r *run, n *netlab.Node) []string { return rulesOf(r, n, "nft list tables", v4+"-save", v6+"-save") }
	for _, cmd := range []string{v4, v6} {
		c.foreign = append(c.foreign, foreignRules(cmd)...)
		for _, table := range []string{
			" -t nat -F && " + cmd + " -t nat -X", " -t nat -F OUTPUT", " -t nat -F POSTROUTING", " -t filter -F", " -t nat -F",
		} {
			c.damage = append(c.damage, shellAct(cmd+table))
		}
	}
	c.foreign = append(c.foreign, foreignTable()...)
	c.refusal = func(line, lastLine int) string {
		if mode == "nft" {
			return fmt.Sprintf("iptables-restore v1.8.9 (nf_tables): \nline %d: RULE_APPEND failed (Operation not supported)", line)
		}
		return fmt.Sprintf("iptables-restore: line %d failed", lastLine) // legacy tells just the line of COMMIT
	}
	return c
}

// recentClients returns how many clients xt_recent keeps in a list.
func recentClients() (most int, why string) {
	text, err := os.ReadFile("/sys/module/xt_recent/parameters/ip_list_tot")
	if err != nil {
		text = []byte("100") // its default, as long as it is not loaded
	}
	most, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	return most, fmt.Sprintf("xt_recent keeps %d clients for each endpoint (ip_list_tot), for kube-proxy as well", most)
}

// foreignTable is another program's nftables table.
func foreignTable() []act {
	return []act{
		shellAct("nft add table inet othermeter"),
		shellAct("nft add chain inet othermeter in { type filter hook input priority 5 \\; }"),
		shellAct("nft add rule inet othermeter in counter"),
	}
}

// withoutForeignRules removes everything from a node's tables.
func withoutForeignRules(r *run, n *netlab.Node) {
	r.shell(n, "nft flush ruleset; for c in iptables-legacy ip6tables-legacy; do for t in nat filter mangle raw; do $c -t $t -F; $c -t $t -X; done; done")
}

// foreignRules are another program's: its own chains, and rules in built-in
// chains before and after where ours may stand.
func foreignRules(cmd string) []act {
	icmp := "icmp"
	if strings.HasPrefix(cmd, "ip6") {
		icmp = "ipv6-icmp"
	}
	var acts []act
	for _, rule := range []string{
		" -t nat -N OTHER-NAT",
		" -t nat -A OTHER-NAT -p " + icmp + " -j RETURN",
		" -t nat -A PREROUTING -j OTHER-NAT",
		" -t nat -A POSTROUTING -o nosuch0 -j MASQUERADE",
		" -t filter -N OTHER-FILTER",
		" -t filter -A OTHER-FILTER -p tcp --dport 9 -j DROP",
		" -t filter -I FORWARD -j OTHER-FILTER",
		" -t filter -A INPUT -p tcp --dport 9 -j DROP",
		" -t mangle -A FORWARD -p tcp --dport 9 -j MARK --set-xmark 0x1/0x1",
	} {
		acts = append(acts, shellAct(cmd+rule))
	}
	return acts
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

// rulesOf is what dump commands print: rules without their counters, chains,
// tables; without built-in chains, which stay once a table was used. One shell
// runs all, as starting programs is what costs.
func rulesOf(r *run, n *netlab.Node, dump ...string) []string {
	const mark = "== "
	script := "set -e"
	for _, cmd := range dump {
		script += "; echo '" + mark + cmd + "'; " + cmd
	}
	var lines []string
	command, table := "", ""
	for line := range strings.Lines(r.shell(n, script)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, mark):
			command, table = strings.Fields(line)[1], ""
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case line == "" || line == "COMMIT" || line[0] == '#':
		case line[0] == ':':
			name, policy, _ := strings.Cut(line[1:], " ")
			if strings.HasPrefix(policy, "-") || strings.HasPrefix(policy, "DROP") { // a chain of someone's own, or no default
				lines = append(lines, fmt.Sprintf("%s %s: :%s %s", command, table, name, strings.Fields(policy)[0]))
			}
		case line[0] == '-':
			lines = append(lines, fmt.Sprintf("%s %s: %s", command, table, line))
		case strings.HasPrefix(line, "table inet"):
			lines = append(lines, line)
		}
	}
	return lines
}

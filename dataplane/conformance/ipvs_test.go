package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ipvs"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Commands have their whole path where a small machine has another program of that
// name.

// The IPVS column. It needs ip_vs, which not every kernel has: `make test-vm`
// runs it on kernels that do.

func ipvsColumn() column {
	return column{
		name: "ipvs", backend: "ipvs", elsewhere: "make test-vm",
		driver: func(at site) dataplane.Driver { return ipvs.Driver(ipvs.Options{ExcludeCIDRs: at.Excluded}) },
		state:  ipvsState,
		damage: []act{
			shellAct("ipvsadm -C"),
			shellAct("nft delete table ip switchyard-ipvs; nft delete table ip6 switchyard-ipvs; true"),
			shellAct("/sbin/ip route flush table local proto 83; /sbin/ip -6 route flush table local proto 83"),
			shellAct("nft flush chain ip switchyard-ipvs services; nft flush chain ip6 switchyard-ipvs services; true"),
			shellAct("nft flush set ip switchyard-ipvs plain-masq-all; nft flush set ip6 switchyard-ipvs vips; true"),
			shellAct("nft delete chain ip switchyard-ipvs postrouting; nft 'flush chain ip6 switchyard-ipvs postrouting; delete chain ip6 switchyard-ipvs postrouting'; true"),
		},
		foreign: slices.Concat(foreignRules("iptables-nft"), foreignTable(), []act{
			shellAct("ipvsadm -A -t 10.99.0.1:80 -s rr -p 300"),
			shellAct("ipvsadm -a -t 10.99.0.1:80 -r 10.99.0.2:8080 -m"),
			shellAct("ipvsadm -A -u [fd99::1]:53 -s wlc"),
			shellAct("/sbin/ip route add local 10.99.0.1 dev lo"),
		}),
		withoutForeign: func(r *run, n *netlab.Node) {
			withoutForeignRules(r, n)
			r.shell(n, "ipvsadm -C; /sbin/ip route del local 10.99.0.1 dev lo")
		},
		remove:  removeFromIPVS,
		left:    func(site) error { return nil },
		faults:  newCallFaults,
		refused: refusedByNeighbour,
	}
}

// ipvsState is IPVS services, our routes, our tables, and foreign rules.
func ipvsState(r *run, n *netlab.Node) []string {
	r.Helper()
	lines := slices.Concat(ipvsServices(r.shell(n, "ipvsadm -Sn")), nftLines(r.shell(n, "nft -s list ruleset")))
	for line := range strings.Lines(r.shell(n, "/sbin/ip route show table local type local; /sbin/ip -6 route show table local type local")) {
		if !strings.Contains(line, "proto kernel") {
			lines = append(lines, "route "+strings.TrimSpace(line))
		}
	}
	slices.Sort(lines)
	return append(lines, rulesOf(r, n, "iptables-nft-save")...)
}

// ipvsServices are the services with the endpoints that get new connections, as
// ipvsadm saves them. (/proc/net/ip_vs has left out services in some reads.)
func ipvsServices(saved string) []string {
	var lines []string
	for line := range strings.Lines(saved) {
		if line = strings.TrimSpace(line); !strings.HasSuffix(line, " -w 0") { // else it drains
			lines = append(lines, line)
		}
	}
	return lines
}

// refusedByNeighbour has another program's IPVS service where a Service port
// wants its own, in a range that is excluded.
func refusedByNeighbour(r *run) {
	before := world{services: []service{serving("good", "a1"), serving("fine", "b1")}}
	next := world{services: []service{serving("good", "a2"), serving("bad", "a1 b3"), serving("fine", "b2"), serving("new", "a1")}}
	r.sync(before)
	r.world = next
	bad := r.frontendAddr(r.service("bad"), clusterIP, dataplane.IPv4)
	at := r.site(r.node("node-a"))
	at.Excluded = []netip.Prefix{netip.PrefixFrom(bad.Addr(), 32)}
	a := r.restartAt("node-a", at)
	r.must(r.syncA(true, before))
	kinds := []string{"-t", "-u", "--sctp-service"}
	for _, kind := range kinds {
		r.shell(a.node, fmt.Sprintf("ipvsadm -A %s %s -s rr", kind, bad))
	}
	var partial *partialError
	if err := r.syncA(false, next); !errors.As(err, &partial) {
		r.Fatalf("Sync returned %v; want a PartialError", err)
	}
	for _, p := range partial.failed {
		if p.ID.Service != "bad" || p.ID.Family != dataplane.IPv4 || !strings.Contains(p.Err, "--ipvs-exclude-cidrs") {
			r.Errorf("the error says of %s: %s; it should be of IPv4 ports of bad, and name the flag", p.ID, p.Err)
		}
	}
	if len(partial.failed) != len(protocols) {
		r.Errorf("the error names %d Service ports; want the %d IPv4 ports of bad", len(partial.failed), len(protocols))
	}
	r.check(slices.Concat(works("good", "a2"), works("fine", "b2"), works("new", "a1"))...)
	for _, p := range works("bad", "a1 b3") {
		r.check(p.over(dataplane.IPv6))
	}
	for _, kind := range kinds {
		r.shell(a.node, fmt.Sprintf("ipvsadm -D %s %s", kind, bad))
	}
	r.must(a.sync(false, next.snapshot(r, a.node)))
	r.observeOn(a, next.snapshot(r, a.node))
	r.check(works("bad", "a1 b3")...)
	r.restart("node-a")
}

// removeFromIPVS removes a random IPVS service or endpoint, route, rule or element.
func removeFromIPVS(r *run, n *netlab.Node, random *rand.Rand) string {
	family := []string{"ip", "ip6"}[random.IntN(2)]
	kinds := []struct {
		name     string
		commands func() []string
	}{
		{"service", func() []string { return ipvsadmLines(r, n, "-A", "ipvsadm -D %s %s", 2) }},
		{"endpoint", func() []string { return ipvsadmLines(r, n, "-a", "ipvsadm -d %s %s %s %s", 4) }},
		{"route", func() []string { return routeLines(r, n, family) }},
		{"rule", func() []string { return ruleLines(r, n, family, "switchyard-ipvs") }},
		{"element", func() []string { return elementLines(r, n, family, "switchyard-ipvs") }},
	}
	kind := kinds[random.IntN(len(kinds))]
	commands := kind.commands()
	if len(commands) == 0 {
		r.Fatalf("there is no %s of ours to remove", kind.name)
	}
	chosen := commands[random.IntN(len(commands))]
	r.shell(n, chosen)
	return chosen
}

// ipvsadmLines are commands made of the first words of what ipvsadm saves.
func ipvsadmLines(r *run, n *netlab.Node, begin, format string, words int) []string {
	var commands []string
	for line := range strings.Lines(r.shell(n, "ipvsadm -Sn")) {
		f := strings.Fields(line)
		if len(f) <= words || f[0] != begin {
			continue
		}
		var args []any
		for _, w := range f[1 : 1+words] {
			args = append(args, w)
		}
		commands = append(commands, fmt.Sprintf(format, args...))
	}
	return commands
}

// routeLines are commands that each delete one of our routes.
func routeLines(r *run, n *netlab.Node, family string) []string {
	ip := "/sbin/ip"
	if family == "ip6" {
		ip += " -6"
	}
	var commands []string
	for line := range strings.Lines(r.shell(n, ip+" route show table local proto 83")) {
		if f := strings.Fields(line); len(f) > 1 {
			commands = append(commands, ip+" route del local "+f[1]+" dev lo table local")
		}
	}
	return commands
}

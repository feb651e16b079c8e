package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Clause 4 from the other side: what other programs do on a node changes
// nothing of what Services' clients see, or wins where it is meant to.

// neighbour is a program that has its own state on the nodes.
type neighbour struct {
	name string
	// setUp brings the program to a node. It removes it again by Cleanup.
	setUp func(*run, *netlab.Node)
	// holds returns what must be so alongside the program. Nil means all of wide.
	holds func(*run) []probe
	// unlessOwn is why a backend with connections of its own is not meant to let the
	// program have its way. "": it is.
	unlessOwn string
}

// testCase checks that everything holds where the program comes second, and
// again where a new agent comes second.
func (n neighbour) testCase() testCase {
	return testCase{"neighbour", n.name, func(r *run) {
		if n.unlessOwn != "" && r.col.ownsConnections() {
			r.notMeant(n.unlessOwn)
			return
		}
		holds := wide
		if n.holds != nil {
			holds = func() []probe { return n.holds(r) }
		}
		r.sync(wideWorld())
		for _, node := range r.lab.Nodes {
			n.setUp(r, node)
		}
		r.check(holds()...)
		if r.Failed() {
			r.Fatal("it failed where the other program came second")
		}
		r.cleared()
		r.syncUnknown(r.world)
		r.check(holds()...)
	}}
}

// ownUntracked is the reason where the program keeps packets from conntrack and takes
// them for itself.
const ownUntracked = "it has connections of its own and serves tracked and untracked packets, as in kube-proxy's mode"

// wideWorld has a Service for each way of a packet and each verdict.
func wideWorld() world {
	w := pathServices()
	w.services = append(w.services,
		service{name: "empty", frontends: frontendsOf(kinds, frontend{pool: on("")})},
		service{name: "far", frontends: []frontend{{kind: clusterIP, pool: own("b1"), snat: dataplane.SNATNonPods}}},
		service{name: "ranged", frontends: []frontend{{kind: loadBalancer, pool: on("b1"), snat: dataplane.SNATAll, sources: []netip.Prefix{
			netip.MustParsePrefix("10.30.1.0/24"), netip.MustParsePrefix("fd30:0:0:1::/64"),
		}}}},
	)
	return w
}

// wide is what must be so in wideWorld, each asked once.
func wide() []probe { return append(wideAnswers(), wideVerdicts()...) }

// wideAnswers are those of wide that are answered.
func wideAnswers() []probe {
	return once(slices.Concat(
		toEach(kinds, "here", from("outside").reaches("a1").seenAs("node-a")),
		toEach(kinds, "there", from("outside").reaches("b1").seenAs("node-a")),
		toEach([]dataplane.Kind{loadBalancer, nodePort}, "kept", from("outside").reaches("a1").seenAs("outside")),
		toEach(kinds, "here", from("a1").reaches("a1").seenAs("node-a")),
		toEach(kinds, "here", from("node-a").reaches("a1").seenAs("node-a")),
		toEach(kinds, "there", from("node-a").reaches("b1").seenAs("node-a")),
		[]probe{
			from("a3").to(clusterIP, "here").reaches("a1").seenAs("a3"), from("a3").to(clusterIP, "there").reaches("b1").seenAs("a3"),
			from("a3").to(loadBalancer, "there").reaches("b1").seenAs("node-a"),
			from("a3").toNodePort("there", "node-b").reaches("b1").seenAs("node-b"), from("b3").toNodePort("here", "node-a").reaches("a1"),
			from("node-a").toNodePort("there", "node-b").reaches("b1"), from("outside").to(loadBalancer, "ranged").reaches("b1"),
		},
	))
}

// wideVerdicts are those of wide that are not answered.
func wideVerdicts() []probe {
	return slices.Concat(
		toEach(kinds, "empty", from("outside").rejected()), toEach(kinds, "empty", from("a3").rejected()),
		[]probe{
			from("node-a").to(clusterIP, "empty").rejected(), from("a3").to(clusterIP, "far").dropped(),
			from("outside2").to(loadBalancer, "ranged").dropped(),
		},
	)
}

// once makes probes ask once.
func once(probes []probe) []probe {
	for i := range probes {
		probes[i] = probes[i].once()
	}
	return probes
}

// neighbourTable lists the neighbours.
func neighbourTable() []testCase {
	var cases []testCase
	for _, n := range slices.Concat(tcNeighbours(), firewalls()) {
		cases = append(cases, n.testCase())
	}
	return cases
}

// firewalls are rules of the kernel's own packet filter.
func firewalls() []neighbour {
	all := []string{"prerouting", "input", "forward", "output", "postrouting"}
	var invalid, marks strings.Builder
	for _, hook := range all {
		fmt.Fprintf(&invalid, "chain %s { type filter hook %[1]s priority 1; ct state invalid counter drop; }\n", hook)
		fmt.Fprintf(&marks, "chain %s { type filter hook %[1]s priority -150; ct mark set ct mark or 0x80; meta mark set meta mark or 0x80; }\n", hook)
	}
	return []neighbour{
		nftNeighbour("rules that drop packets of state invalid in all hooks change nothing", "inet", invalid.String()),
		nftNeighbour("rules that mark all packets and connections change nothing", "inet", marks.String()),
		shellNeighbour("rp_filter=1 changes nothing",
			"for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$f; done", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done"),
		nftNeighbour("a firewall that drops all but the node's and pods' own connections changes nothing", "inet", `
			chain input { type filter hook input priority 10; policy drop; ct state established,related accept; iifname lo accept; meta l4proto { icmp, ipv6-icmp } accept; }
			chain forward { type filter hook forward priority 10; policy drop; ct state established,related accept; `+acceptPods("ip")+acceptPods("ip6")+`}`),
		shellNeighbour("iptables' policies DROP, with pods accepted, change no answer",
			dropPolicies("-A", "DROP"), dropPolicies("-D", "ACCEPT")).with(func(*run) []probe { return wideAnswers() }),
		shellNeighbour("rules that accept a bit of the mark's upper half, and clear others of it, change nothing (Calico)", calicoMarks("-I"), calicoMarks("-D")),
		preRoutingDrops(), serviceDrops(), untracked(), masquerades(), nativeChains(), nativeRules(), otherProxy(), transparentProxy(), nodeCache(),
	}
}

func acceptPods(family string) string {
	cidr := netlab.ClusterCIDRs()[map[string]int{"ip": 0, "ip6": 1}[family]]
	return fmt.Sprintf("%s saddr %s accept; %[1]s daddr %[2]s accept; ", family, cidr)
}

// dropPolicies are the commands that set iptables' policies to DROP and accept
// what a node needs, or undo that.
func dropPolicies(add, policy string) string {
	script := ""
	for f, iptables := range []string{"iptables-nft", "ip6tables-nft"} {
		pods := netlab.ClusterCIDRs()[f].String()
		for _, rule := range []string{
			"FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "FORWARD -s " + pods + " -j ACCEPT", "FORWARD -d " + pods + " -j ACCEPT",
			"INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "INPUT -i lo -j ACCEPT",
		} {
			script += iptables + " " + add + " " + rule + "; "
		}
		script += iptables + " -P FORWARD " + policy + "; " + iptables + " -P INPUT " + policy + "; "
	}
	return script
}

// calicoMarks are rules that Calico has at the top of iptables' chains.
func calicoMarks(do string) string {
	script := ""
	for _, iptables := range []string{"iptables-nft", "ip6tables-nft"} {
		for _, rule := range []string{
			"INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT", "OUTPUT -m mark --mark 0x10000/0x10000 -j ACCEPT",
			"FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT", "FORWARD -j MARK --set-xmark 0x0/0xe0000",
		} {
			script += iptables + " -w " + do + " " + rule + "; "
		}
	}
	return script
}

// preRoutingDrops is a host's firewall, or a CNI's, that decides before anything
// is translated: on NodePorts by their own numbers.
func preRoutingDrops() neighbour {
	return neighbour{
		name: "rules in prerouting that drop a NodePort's packets win", setUp: func(r *run, n *netlab.Node) {
			port := r.frontendAddr(r.service("there"), nodePort, dataplane.IPv4).Port()
			keptPort := r.frontendAddr(r.service("kept"), nodePort, dataplane.IPv4).Port()
			r.nft(n.Host, "inet", fmt.Sprintf(`
				chain raw { type filter hook prerouting priority -300; iifname eth0 meta l4proto { tcp, udp, sctp } th dport %d drop; }
				chain mangle { type filter hook prerouting priority -150; iifname eth0 fib daddr type local meta l4proto { tcp, udp, sctp } th dport %d drop; }`, port, keptPort))
		},
		holds: func(*run) []probe {
			return once(append(toEach(externalKinds[:2], "there", from("outside").reaches("b1")),
				from("outside").toNodePort("there", "node-a").dropped(), from("outside").toNodePort("kept", "node-a").dropped(),
				from("outside").to(loadBalancer, "kept").reaches("a1"), from("outside").toNodePort("here", "node-a").reaches("a1"), from("a3").toNodePort("there", "node-a").reaches("b1"),
			))
		},
	}
}

// serviceDrops are rules about the addresses of Services. Sockets that are
// translated have no packet that they match (docs/install.md).
func serviceDrops() neighbour {
	return neighbour{
		name: "rules that drop what goes to a Service's address win over packets, and sockets that are translated pass them by", setUp: func(r *run, n *netlab.Node) {
			for f, family := range []string{"ip", "ip6"} {
				there := r.service("there")
				first, original := r.frontendAddr(there, clusterIP, families[f]).Addr(), r.frontendAddr(there, loadBalancer, families[f]).Addr()
				r.nft(n.Host, family, fmt.Sprintf(`
					chain pre { type filter hook prerouting priority -300; %[1]s daddr %[2]s drop; }
					chain out { type filter hook output priority -150; %[1]s daddr %[2]s drop; ct original %[1]s daddr %[3]s drop; }
					chain late { type filter hook postrouting priority 0; ct original %[1]s daddr %[3]s drop; }`, family, first, original))
			}
		},
		holds: func(r *run) []probe {
			var probes []probe
			for _, kind := range []dataplane.Kind{clusterIP, loadBalancer} {
				for _, client := range []string{"a3", "node-a", "outside"} {
					p := from(client).to(kind, "there")
					if r.col.sockets && client != "outside" {
						probes = append(probes, p.in(dataplane.TCP).reaches("b1").seenAs(client))
						p = p.in(dataplane.UDP, dataplane.SCTP)
					}
					probes = append(probes, p.notServed())
				}
			}
			return once(append(probes,
				from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(externalIP, "there").reaches("b1"), from("outside").toNodePort("there", "node-a").reaches("b1"),
			))
		},
	}
}

// untracked is a raw rule that takes packets to a NodePort away from conntrack,
// without which nothing of the kernel translates a packet. As with kube-proxy they
// are the node's own then, on which nobody listens.
func untracked() neighbour {
	return neighbour{
		name: "packets to a NodePort that a raw rule leaves untracked are the node's own, and all others are served", setUp: func(r *run, n *netlab.Node) {
			r.nft(n.Host, "inet", fmt.Sprintf("chain raw { type filter hook prerouting priority -300; iifname eth0 fib daddr type local meta l4proto { tcp, udp, sctp } th dport %d notrack; }",
				r.frontendAddr(r.service("there"), nodePort, dataplane.IPv4).Port()))
		},
		holds: func(*run) []probe {
			return once(append(toEach(externalKinds[:2], "there", from("outside").reaches("b1").seenAs("node-a")),
				from("outside").toNodePort("there", "node-a").in(dataplane.TCP, dataplane.UDP).rejected(), from("outside").toNodePort("there", "node-a").in(dataplane.SCTP).notServed(),
				from("b3").toNodePort("there", "node-a").in(dataplane.TCP, dataplane.UDP).rejected(),
				from("a3").toNodePort("there", "node-a").reaches("b1"), from("node-a").toNodePort("there", "node-a").reaches("b1"),
				from("outside").toNodePort("here", "node-a").reaches("a1").seenAs("node-a"), from("outside").toNodePort("kept", "node-a").reaches("a1").seenAs("outside"),
			))
		},
		unlessOwn: ownUntracked,
	}
}

// masquerades are the three rules that flannel has.
func masquerades() neighbour {
	return neighbour{
		name: "a CNI's rules that masquerade what leaves for pods and what leaves them change no answer", setUp: func(r *run, n *netlab.Node) {
			for f, family := range []string{"ip", "ip6"} {
				r.nft(n.Host, family, fmt.Sprintf(`chain post { type nat hook postrouting priority 100;
					%[1]s saddr %[2]s %[1]s daddr %[2]s return; %[1]s saddr %[2]s masquerade fully-random; %[1]s saddr != %[2]s %[1]s daddr %[2]s masquerade fully-random; }`,
					family, netlab.ClusterCIDRs()[f]))
			}
		},
		holds: func(*run) []probe {
			probes := wide()
			for i := range probes {
				probes[i].as = ""
			}
			return probes
		},
	}
}

// nativeChains has chains of nftables' own in tables that have the names of
// iptables' (ubicloud/ubicloud#2966, cloudnativelabs/kube-router#1777).
func nativeChains() neighbour {
	var on, off strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		for table, chain := range map[string]string{
			"nat": "nat hook postrouting priority 100; oifname nosuch0 masquerade", "filter": "filter hook forward priority 5; counter",
			"mangle": "filter hook output priority 5; counter", "raw": "filter hook prerouting priority -310; counter",
		} {
			fmt.Fprintf(&on, "table %s %s { chain own { type %s; }; }\n", family, table, chain)
			fmt.Fprintf(&off, "delete chain %s %s own\n", family, table)
		}
	}
	return shellNeighbour("nftables' own chains in tables that have the names of iptables' change nothing", "nft '"+on.String()+"'", "nft '"+off.String()+"'")
}

// nativeRules has rules of nftables' own in iptables' chains, which iptables-save
// then does not list.
func nativeRules() neighbour {
	var on, off strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		for chain, priority := range map[string]string{"nat PREROUTING": "nat hook prerouting priority -100", "nat OUTPUT": "nat hook output priority -100", "filter INPUT": "filter hook input priority 0", "filter FORWARD": "filter hook forward priority 0"} {
			table, name, _ := strings.Cut(chain, " ")
			fmt.Fprintf(&on, "add table %s %s; add chain %[1]s %[2]s %s { type %s; }; add rule %[1]s %[2]s %[3]s ct mark 0x7777 counter\n", family, table, name, priority)
			fmt.Fprintf(&off, "nft -a list chain %s %s %s | sed -n \"s/.*ct mark.*handle/delete rule %[1]s %[2]s %[3]s handle/p\" | nft -f -; ", family, table, name)
		}
	}
	return shellNeighbour("nftables' own rules in iptables' chains change nothing", "nft '"+on.String()+"'", off.String())
}

// otherProxy serves Services of its own, whose ClusterIPs are of the same range
// (service.kubernetes.io/service-proxy-name), and a port of ours that we do not define.
func otherProxy() neighbour {
	own := func(family dataplane.Family) netip.AddrPort {
		a := map[dataplane.Family]string{dataplane.IPv4: "10.96.255.7", dataplane.IPv6: "fd96::ff07"}[family]
		return netip.AddrPortFrom(netip.MustParseAddr(a), frontendPort)
	}
	return neighbour{
		name: "another proxy's ClusterIPs in the same range, and its port of a ClusterIP of ours, are its own", setUp: func(r *run, n *netlab.Node) {
			for _, family := range families {
				table := map[dataplane.Family]string{dataplane.IPv4: "ip", dataplane.IPv6: "ip6"}[family]
				var rules strings.Builder
				for at, to := range map[netip.AddrPort]netip.AddrPort{own(family): r.server("a2", family), r.otherPort("here")(family): r.server("b2", family)} {
					fmt.Fprintf(&rules, "%s daddr %s meta l4proto { tcp, udp, sctp } th dport %d dnat to %s; ", table, at.Addr(), at.Port(), to)
				}
				priority := map[string]int{"node-a": -90, "node-b": -110}[n.Name] // after ours, and before
				r.nft(n.Host, table, fmt.Sprintf("chain pre { type nat hook prerouting priority %d; %s }\nchain out { type nat hook output priority %[1]d; %[2]s }", priority, rules.String()))
			}
		},
		holds: func(r *run) []probe {
			var probes []probe
			for _, client := range []string{"a3", "node-a", "b3", "node-b", "outside"} {
				p := from(client).once().toAddr("another proxy's ClusterIP", own).reaches("a2")
				q := from(client).once().toAddr("another proxy's port of our ClusterIP", r.otherPort("here")).reaches("b2")
				if client == "outside" { // nobody masquerades for it
					p, q = p.butNotFrom("a2"), q.butNotFrom("b2")
				}
				probes = append(probes, p, q)
			}
			return append(probes, from("a3").to(clusterIP, "here").reaches("a1").once())
		},
	}
}

// transparentProxy takes TCP connections for itself as they come in (TPROXY), by a
// mark that routes them to the node: to an address of the range that is no ClusterIP,
// and to a port of a ClusterIP of ours that we do not define.
func transparentProxy() neighbour {
	return neighbour{
		name: "another program takes packets by TPROXY: an unallocated ClusterIP, and a port of ours that is not defined", setUp: func(r *run, n *netlab.Node) {
			const port = 9999
			route := "ip %[1]s rule %[2]s fwmark 0x10 lookup 717; ip %[1]s route %[2]s local default dev lo table 717; "
			routes := func(do string) string { return fmt.Sprintf(route, "-4", do) + fmt.Sprintf(route, "-6", do) }
			r.Cleanup(func() { r.shell(n, routes("del")) })
			r.shell(n, "set -e; "+routes("add"))
			server, err := n.ServeTaken(port)
			r.must(err)
			r.Cleanup(func() { _ = server.Stop() })
			for _, family := range families {
				table := map[dataplane.Family]string{dataplane.IPv4: "ip", dataplane.IPv6: "ip6"}[family]
				var rules strings.Builder
				for _, at := range []netip.AddrPort{r.unallocated(family), r.otherPort("here")(family)} {
					fmt.Fprintf(&rules, "%s daddr %s tcp dport %d tproxy to :%d meta mark set 0x10 accept; ", table, at.Addr(), at.Port(), port)
				}
				r.nft(n.Host, table, "chain pre { type filter hook prerouting priority -150; "+rules.String()+"}")
			}
		},
		holds: func(r *run) []probe {
			var probes []probe
			for client, node := range map[string]string{"a3": "node-a", "outside": "node-a", "b3": "node-b"} {
				unallocated := from(client).toAddr("an unallocated address", r.unallocated)
				undefined := from(client).toAddr("another port of here", r.otherPort("here"))
				for _, taken := range []probe{unallocated, undefined} {
					probes = append(probes, taken.in(dataplane.TCP).reaches(node).seenAs(client))
				}
				probes = append(probes, unallocated.in(dataplane.UDP, dataplane.SCTP).dropped(), undefined.in(dataplane.UDP, dataplane.SCTP).rejected())
			}
			return once(append(probes, from("a3").to(clusterIP, "here").reaches("a1"), from("outside").toNodePort("there", "node-a").reaches("b1")))
		},
		unlessOwn: "its ClusterIPs are the node's own, so that it judges what comes in for the node itself, as in kube-proxy's mode",
	}
}

// nodeCache is a server on the node that has a ClusterIP for its own, whose
// packets are not tracked, as NodeLocal DNSCache does it (kubernetes/dns#682).
func nodeCache() neighbour {
	return neighbour{
		name: "a cache on each node that has bound a ClusterIP, its packets untracked, answers there (NodeLocal DNSCache)", setUp: func(r *run, n *netlab.Node) {
			var own []netip.Addr
			for _, family := range families {
				at := r.frontendAddr(r.service("there"), clusterIP, family)
				own = append(own, at.Addr())
				table := map[dataplane.Family]string{dataplane.IPv4: "ip", dataplane.IPv6: "ip6"}[family]
				r.bind(n, at.Addr())
				r.nft(n.Host, table, fmt.Sprintf(`
					chain pre { type filter hook prerouting priority -300; %[1]s daddr %[2]s notrack; }
					chain out { type filter hook output priority -300; %[1]s saddr %[2]s notrack; %[1]s daddr %[2]s notrack; }`, table, at.Addr()))
				r.serveAt(n.Host, at)
			}
			r.world.bound = singles(own...)
			r.sync(r.world) // as the watcher would
		},
		holds: func(*run) []probe {
			return once(append(toEach(externalKinds, "there", from("a3").reaches("b1")),
				from("a3").to(clusterIP, "there").reaches("node-a").seenAs("a3"), from("b3").to(clusterIP, "there").reaches("node-b").seenAs("b3"),
				from("node-a").to(clusterIP, "there").reaches("node-a"), from("outside").toNodePort("there", "node-a").reaches("b1"),
				from("a3").to(clusterIP, "here").reaches("a1"),
			))
		},
		unlessOwn: ownUntracked,
	}
}

// shellNeighbour is set up and removed by shell commands on the node.
func shellNeighbour(name, on, off string) neighbour {
	return neighbour{name: name, setUp: func(r *run, n *netlab.Node) {
		r.Cleanup(func() { r.shell(n, off) })
		r.shell(n, "set -e; "+on)
	}}
}

// nftNeighbour is a table of nftables.
func nftNeighbour(name, family, chains string) neighbour {
	return neighbour{name: name, setUp: func(r *run, n *netlab.Node) { r.nft(n.Host, family, chains) }}
}

// with says what must be so instead of wide.
func (n neighbour) with(holds func(*run) []probe) neighbour {
	n.holds = holds
	return n
}

// nft puts a table with these chains into a host's kernel until the case ends.
func (r *run) nft(h *netlab.Host, family, chains string) {
	r.Helper()
	r.Cleanup(func() { r.sh(h, "nft delete table "+family+" neighbour") })
	r.sh(h, fmt.Sprintf("nft 'table %s neighbour {\n%s\n}'", family, chains))
}

// bind gives a node an address on lo until the case ends.
func (r *run) bind(n *netlab.Node, a netip.Addr) {
	r.Helper()
	p := netip.PrefixFrom(a, a.BitLen())
	r.must(n.AddAddress("lo", p))
	r.Cleanup(func() { r.must(n.RemoveAddress("lo", p)) })
}

// serveAt has a host answer at one more address, in all protocols, until the case ends.
func (r *run) serveAt(h *netlab.Host, at netip.AddrPort) {
	r.Helper()
	for _, protocol := range protocols {
		server, err := h.Serve(wireName(protocol), at.Port(), at.Addr())
		r.must(err)
		r.Cleanup(func() { _ = server.Stop() })
	}
}

// server is where a host's own server listens.
func (r *run) server(host string, family dataplane.Family) netip.AddrPort {
	return netip.AddrPortFrom(r.host(host).Addr(int(family)), serverPort)
}

// straight is server for toAddr.
func (r *run) straight(host string) func(dataplane.Family) netip.AddrPort {
	return func(family dataplane.Family) netip.AddrPort { return r.server(host, family) }
}

package conformance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	bpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/netlab"
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
	// known says which backend does not pass yet, and why.
	known map[string]string
}

// testCase checks that everything holds where the program comes second, and
// again where a new agent comes second.
func (n neighbour) testCase() testCase {
	return testCase{"neighbour", n.name, func(r *run) {
		for backend, reason := range n.known {
			r.known(backend, reason)
		}
		holds := func() []probe { return wide() }
		if n.holds != nil {
			holds = func() []probe { return n.holds(r) }
		}
		r.sync(wideWorld())
		for _, node := range r.lab.Nodes {
			n.setUp(r, node)
		}
		r.check(holds()...)
		if r.Failed() || r.failed {
			r.Fatal("it failed where the other program came second")
		}
		r.cleared()
		r.syncUnknown(r.world)
		r.check(holds()...)
	}}
}

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

// tcNeighbours attach programs to devices, as CNIs, flow exporters and policy
// agents do (aws/aws-network-policy-agent#480, netobserv/netobserv-ebpf-agent#822,
// projectcalico/calico#7698).
func tcNeighbours() []neighbour {
	const (
		next, pass, drop = -1, 0, 2 // of tcx, and as many of tc
	)
	return []neighbour{
		{name: "tc filters on all devices, both ways, that end with TC_ACT_OK change nothing", setUp: tcOnAll(pass)},
		{name: "tc filters on all devices, both ways, that end with TC_ACT_UNSPEC change nothing", setUp: tcOnAll(next)},
		{name: "tcx programs on all devices, both ways, before all others, that pass packets change nothing", setUp: tcxOnAll(pass, link.Head())},
		{name: "tcx programs on all devices, both ways, after all others, that pass packets change nothing", setUp: tcxOnAll(pass, link.Tail())},
		{name: "tcx programs on all devices, both ways, before all others, that leave packets to the next change nothing", setUp: tcxOnAll(next, link.Head())},
		{
			name: "a tc filter that drops what a pod sends wins", setUp: func(r *run, n *netlab.Node) {
				r.tcFilter(n, netlab.PodInterfacePrefix+"1", netlink.HANDLE_MIN_INGRESS, drop)
			},
			holds: func(*run) []probe {
				return slices.Concat(toEach(kinds, "here", from("outside").dropped()),
					[]probe{from("a3").to(clusterIP, "here").dropped(), from("node-a").to(clusterIP, "here").dropped()})
			},
		},
		shellNeighbour("the uplink's packets by way of an ifb device change nothing",
			"ip link add ifb-up type ifb; ip link set ifb-up up; tc qdisc add dev eth0 ingress; "+redirect("eth0", "ifb-up"),
			"tc qdisc del dev eth0 ingress; ip link del ifb-up"),
		shellNeighbour("pods' bandwidth limits, by way of ifb devices, change nothing",
			"for i in 1 2 3 4; do ip link add ifb$i type ifb; ip link set ifb$i up; tc qdisc add dev pod$i ingress; "+redirect("pod$i", "ifb$i")+
				"; for d in pod$i ifb$i; do tc qdisc add dev $d root tbf rate 1gbit burst 1mb latency 25ms; done; done",
			"for i in 1 2 3 4; do tc qdisc del dev pod$i ingress; tc qdisc del dev pod$i root; ip link del ifb$i; done"),
	}
}

// redirect is the command of the bandwidth plugin of CNI.
func redirect(device, ifb string) string {
	return "tc filter add dev " + device + " parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev " + ifb
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
		preRoutingDrops(), masquerades(), nativeNAT(), otherProxy(), nodeCache(),
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

// preRoutingDrops is a host's firewall, or a CNI's, that decides before anything
// is translated: on NodePorts by their own numbers.
func preRoutingDrops() neighbour {
	return neighbour{
		name: "rules in prerouting that drop a NodePort's packets win", setUp: func(r *run, n *netlab.Node) {
			port := r.frontendAddr(r.service("there"), nodePort, dataplane.IPv4).Port()
			keptPort := r.frontendAddr(r.service("kept"), nodePort, dataplane.IPv4).Port()
			r.nft(n, "inet", fmt.Sprintf(`
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

// masquerades are the three rules that flannel has.
func masquerades() neighbour {
	return neighbour{
		name: "a CNI's rules that masquerade what leaves for pods and what leaves them change no answer", setUp: func(r *run, n *netlab.Node) {
			for f, family := range []string{"ip", "ip6"} {
				r.nft(n, family, fmt.Sprintf(`chain post { type nat hook postrouting priority 100;
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

// nativeNAT has chains of nftables' own in tables that have the names of
// iptables' (ubicloud/ubicloud#2966, cloudnativelabs/kube-router#1777).
func nativeNAT() neighbour {
	return neighbour{
		name: "nftables' own chains in the tables ip nat, ip6 nat, ip filter and ip6 filter change nothing", setUp: func(r *run, n *netlab.Node) {
			for _, family := range []string{"ip", "ip6"} {
				r.nftTable(n, family, "nat", "chain own { type nat hook postrouting priority 100; oifname nosuch0 masquerade; }", "delete chain "+family+" nat own")
				r.nftTable(n, family, "filter", "chain own { type filter hook forward priority 5; counter; }", "delete chain "+family+" filter own")
			}
		},
		known: map[string]string{"iptables-nft": "it cannot read a table in which another program has chains"},
	}
}

// otherProxy serves Services of its own, whose ClusterIPs are of the same range
// (service.kubernetes.io/service-proxy-name), and a port of ours that we do not define.
func otherProxy() neighbour {
	const notThere = "it judges addresses of the Service range before others can translate them"
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
				r.nft(n, table, fmt.Sprintf("chain pre { type nat hook prerouting priority %d; %s }\nchain out { type nat hook output priority %[1]d; %[2]s }", priority, rules.String()))
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
		known: map[string]string{"iptables": notThere, "ipvs": notThere},
	}
}

// nodeCache is a server on the node that has a ClusterIP for its own, whose
// packets are not tracked, as NodeLocal DNSCache does it (kubernetes/dns#682).
func nodeCache() neighbour {
	return neighbour{
		name: "a cache on each node that has bound a ClusterIP, its packets untracked, answers there", setUp: func(r *run, n *netlab.Node) {
			for _, family := range families {
				at := r.frontendAddr(r.service("there"), clusterIP, family)
				table := map[dataplane.Family]string{dataplane.IPv4: "ip", dataplane.IPv6: "ip6"}[family]
				r.bind(n, at.Addr())
				r.nft(n, table, fmt.Sprintf(`
					chain pre { type filter hook prerouting priority -300; %[1]s daddr %[2]s notrack; }
					chain out { type filter hook output priority -300; %[1]s saddr %[2]s notrack; %[1]s daddr %[2]s notrack; }`, table, at.Addr()))
				r.serveAt(n.Host, at)
			}
		},
		holds: func(*run) []probe {
			return once([]probe{
				from("a3").to(clusterIP, "there").reaches("node-a").seenAs("a3"), from("b3").to(clusterIP, "there").reaches("node-b").seenAs("b3"),
				from("node-a").to(clusterIP, "there").reaches("node-a"), from("outside").toNodePort("there", "node-a").reaches("b1"),
				from("a3").to(clusterIP, "here").reaches("a1"),
			})
		},
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
	return neighbour{name: name, setUp: func(r *run, n *netlab.Node) { r.nft(n, family, chains) }}
}

// with says what must be so instead of wide.
func (n neighbour) with(holds func(*run) []probe) neighbour {
	n.holds = holds
	return n
}

// nft puts a table with these chains into a node until the case ends.
func (r *run) nft(n *netlab.Node, family, chains string) {
	r.Helper()
	r.nftTable(n, family, "neighbour", chains, "delete table "+family+" neighbour")
}

func (r *run) nftTable(n *netlab.Node, family, table, chains, undo string) {
	r.Helper()
	r.Cleanup(func() { r.shell(n, "nft "+undo) })
	r.shell(n, fmt.Sprintf("nft -f - <<'END'\ntable %s %s {\n%s\n}\nEND\n", family, table, chains))
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

// tcOnAll puts a tc filter with a verdict on each side of each device.
func tcOnAll(verdict int32) func(*run, *netlab.Node) {
	return func(r *run, n *netlab.Node) {
		for _, device := range r.devices(n) {
			for _, side := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				r.tcFilter(n, device, side, verdict)
			}
		}
	}
}

// tcxOnAll attaches a tcx program with a verdict to each side of each device.
func tcxOnAll(verdict int32, anchor link.Anchor) func(*run, *netlab.Node) {
	return func(r *run, n *netlab.Node) {
		for _, device := range r.devices(n) {
			for _, side := range []bpf.AttachType{bpf.AttachTCXIngress, bpf.AttachTCXEgress} {
				if !r.tcx(n, device, side, verdict, anchor) {
					return
				}
			}
		}
	}
}

// devices are a node's devices by name.
func (r *run) devices(n *netlab.Node) []string {
	var names []string
	r.must(n.Do(func() error {
		all, err := net.Interfaces()
		for _, d := range all {
			names = append(names, d.Name)
		}
		return err
	}))
	return names
}

// verdictProgram is a program for tc that says the same of every packet.
func (r *run) verdictProgram(verdict int32) *bpf.Program {
	r.Helper()
	p, err := bpf.NewProgram(&bpf.ProgramSpec{
		Name: "neighbour", Type: bpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	r.must(err)
	return p
}

// tcFilter puts a filter with a verdict on one side of a device until the case ends.
func (r *run) tcFilter(n *netlab.Node, device string, side uint32, verdict int32) {
	r.Helper()
	p := r.verdictProgram(verdict)
	defer func() { _ = p.Close() }()
	r.must(n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		err = netlink.QdiscAdd(qdisc)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err == nil {
			r.Cleanup(func() { r.must(n.Do(func() error { return netlink.QdiscDel(qdisc) })) })
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Index, Parent: side, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          p.FD(), Name: "neighbour", DirectAction: true,
		})
	}))
}

// tcx attaches a program with a verdict until the case ends. It returns false
// where the kernel has no tcx.
func (r *run) tcx(n *netlab.Node, device string, side bpf.AttachType, verdict int32, anchor link.Anchor) bool {
	r.Helper()
	p := r.verdictProgram(verdict)
	defer func() { _ = p.Close() }()
	var attached link.Link
	err := n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		attached, err = link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: p, Attach: side, Anchor: anchor})
		return err
	})
	if errors.Is(err, bpf.ErrNotSupported) {
		r.notMeant("this kernel has no tcx")
		return false
	}
	r.must(err)
	r.Cleanup(func() { _ = attached.Close() })
	return true
}

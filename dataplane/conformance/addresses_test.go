package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Nodes whose addresses, routes and settings are other than a cloud's image has
// them, and packets that other programs mark.

func addressCases() []testCase {
	return []testCase{
		{"§1.13", "with two networks on an uplink, packets are masqueraded with the address of the next hop's network", twoNetworks},
		{"§1.13", "with the node's address on lo alone, packets are masqueraded with it", addressOnLo},
		{"§1.7", "an address of the Service range that the node has bound answers itself, on each port", boundAddresses},
		{"§1.10", "NodePorts answer at an address that is the node's only by a local route", localRoute},
		{"§1.5", "an uplink that does not forward lets the node itself and IPv6 pass", uplinkForwardsNot},
		{"§1.5", "where rules route the node's own packets and a pod's by tables of their own, both find their way", policyRouting},
		{"§1.13", "the marks of other programs' packets mean nothing", othersMarks},
	}
}

// twoNetworks has node-a reach node-b's pods by a second network of its uplink
// (cilium/cilium#21373, kubernetes/kubernetes#119060). IPv6 chooses the address
// by the destination, whatever the next hop.
func twoNetworks(r *run) {
	r.sync(pathServices())
	a, router := r.node("node-a"), r.lab.Router()
	own, gateway := netip.MustParsePrefix("10.77.0.2/24"), netip.MustParsePrefix("10.77.0.1/24")
	r.must(a.AddAddress("eth0", own))
	r.Cleanup(func() { r.must(a.RemoveAddress("eth0", own)) })
	r.must(router.AddAddress("node-a", gateway))
	r.Cleanup(func() { r.must(router.RemoveAddress("node-a", gateway)) })
	r.ip(a.Host, fmt.Sprintf("route add %s via %s", r.node("node-b").PodCIDRs[0], gateway.Addr()))
	for _, protocol := range protocols {
		for _, p := range toEach(externalKinds, "there", from("outside")) {
			req := r.request(p, protocol, dataplane.IPv4)
			req.Timeout = answerTime
			answer, err := r.host("outside").Ask(req)
			r.must(err)
			if answer.Server != "b1" || answer.Source.Addr() != own.Addr() {
				r.Errorf("%s: outside to %s: should be answered by b1, which sees %s; %s", protocol, r.targetText(p), own.Addr(), answer)
			}
		}
	}
}

// addressOnLo has node-a's addresses on lo, as a host that speaks BGP has them,
// and another network's on a bridge (cilium/cilium#17463).
func addressOnLo(r *run) {
	a := r.node("node-a")
	gateway := func(addr netip.Addr) string { return strings.TrimSuffix(addr.String(), "2") + "1" }
	onLink := func(addr netip.Addr) netip.Prefix {
		return netip.PrefixFrom(addr, map[bool]int{true: 24, false: 64}[addr.Is4()])
	}
	for _, addr := range a.Addrs {
		r.must(a.AddAddress("lo", singles(addr)[0])) // before the other goes, which routes would go with
		r.Cleanup(func() {
			r.must(a.AddAddress("eth0", onLink(addr)))
			r.ip(a.Host, fmt.Sprintf("route replace default via %s dev eth0", gateway(addr)))
			r.ip(a.Host, fmt.Sprintf("route del %s dev eth0 metric 77", gateway(addr)))
			r.must(a.RemoveAddress("lo", singles(addr)[0]))
		})
		r.must(a.RemoveAddress("eth0", onLink(addr)))
		r.ip(a.Host, fmt.Sprintf("route add %s dev eth0 metric 77", gateway(addr)))
		r.ip(a.Host, fmt.Sprintf("route replace default via %s dev eth0", gateway(addr)))
	}
	r.shell(a, "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up")
	r.Cleanup(func() { r.shell(a, "ip link del docker0") })
	r.sync(wideWorld())
	r.check(wide()...)
}

// boundAddresses has servers on node-a at a ClusterIP and at an address that
// no Service has (antrea-io/antrea#2137).
func boundAddresses(r *run) {
	r.sync(wideWorld())
	const port = 9153
	a := r.node("node-a")
	free := func(family dataplane.Family) netip.AddrPort {
		addr := map[dataplane.Family]string{dataplane.IPv4: "10.96.250.250", dataplane.IPv6: "fd96::fafa"}[family]
		return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	}
	ours := func(family dataplane.Family) netip.AddrPort {
		return netip.AddrPortFrom(r.frontendAddr(r.service("there"), clusterIP, family).Addr(), port)
	}
	for _, family := range families {
		for _, at := range []netip.AddrPort{free(family), ours(family)} {
			r.bind(a, at.Addr())
			r.serveAt(a.Host, at)
			r.world.bound = append(r.world.bound, singles(at.Addr())...)
		}
	}
	r.world.boundOn = a.Name
	r.sync(r.world) // as the watcher would
	var probes []probe
	for _, client := range []string{"a3", "node-a", "outside"} {
		probes = append(probes,
			from(client).toAddr("an address of the Service range that the node has bound", free).reaches("node-a"),
			from(client).toAddr("another port of a ClusterIP that the node has bound", ours).reaches("node-a"),
		)
	}
	r.check(once(probes)...)
}

// localRoute gives node-a an address as clouds' agents do for load balancers
// (kubernetes/kubernetes#33081).
func localRoute(r *run) {
	addrs := map[dataplane.Family]netip.Addr{dataplane.IPv4: netip.MustParseAddr("10.77.0.50"), dataplane.IPv6: netip.MustParseAddr("fd77::50")}
	a := r.node("node-a")
	for _, family := range families {
		route := "local " + addrs[family].String() + " dev eth0 table local"
		r.ip(a.Host, "route add "+route)
		r.Cleanup(func() { r.ip(a.Host, "route del "+route) })
		way := fmt.Sprintf("%s via %s", addrs[family], a.Addr(int(family)))
		r.ip(r.lab.Router(), "route add "+way)
		r.Cleanup(func() { r.ip(r.lab.Router(), "route del "+way) })
	}
	r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: nodePort, pool: on("a1 b1"), snat: dataplane.SNATAll}}}}, nodePorts: func(n *netlab.Node) []netip.Prefix {
		if n != a {
			return eth0(n)
		}
		return append(eth0(n), singles(addrs[dataplane.IPv4], addrs[dataplane.IPv6])...)
	}})
	at := r.at(func(family dataplane.Family) netip.Addr { return addrs[family] })
	var probes []probe
	for _, client := range []string{"outside", "a3", "b3", "node-a", "node-b"} {
		probes = append(probes, from(client).toAddr("the NodePort on the local route's address", at).reaches("a1 b1"), from(client).toNodePort("web", "node-a").reaches("a1 b1"))
	}
	r.check(probes...)
}

// uplinkForwardsNot sets eth0's own forwarding to 0, which IPv6 does not care
// about while all devices' is 1 (projectcalico/calico#9340).
func uplinkForwardsNot(r *run) {
	r.sync(wideWorld())
	a := r.node("node-a")
	r.shell(a, "sysctl -qw net.ipv4.conf.eth0.forwarding=0 net.ipv6.conf.eth0.forwarding=0")
	r.Cleanup(func() { r.shell(a, "sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv6.conf.eth0.forwarding=1") })
	var probes []probe
	for _, p := range wide() {
		probes = append(probes, p.over(dataplane.IPv6))
	}
	own := append(toEach(kinds, "here", from("node-a").reaches("a1")), toEach(kinds, "there", from("node-a").reaches("b1"))...)
	for _, p := range once(own) {
		bound := p
		bound.source = func(family dataplane.Family) netip.Addr { return a.Addr(int(family)) }
		probes = append(probes, p, bound)
	}
	r.check(probes...)
}

// policyRouting has node-a reach node-b's pods by one table for its own packets
// and by another one for those of a3. No other packet finds a way.
func policyRouting(r *run) {
	r.sync(wideWorld())
	a := r.node("node-a")
	for f, pods := range r.node("node-b").PodCIDRs {
		family := []string{"-4", "-6"}[f]
		r.Cleanup(func() {
			r.ip(a.Host, fmt.Sprintf("%s route del unreachable %s", family, pods))
			for priority := range 2 {
				r.ip(a.Host, fmt.Sprintf("%s rule del priority %d", family, 70+priority))
				r.ip(a.Host, fmt.Sprintf("%s route flush table %d", family, 70+priority))
			}
		})
		for priority, devices := range []string{"iif lo", "iif " + netlab.PodInterfacePrefix + "3"} {
			r.ip(a.Host, fmt.Sprintf("%s route add %s via %s table %d", family, pods, strings.TrimSuffix(a.Addrs[f].String(), "2")+"1", 70+priority))
			r.ip(a.Host, fmt.Sprintf("%s rule add priority %d %s to %s lookup %[2]d", family, 70+priority, devices, pods))
		}
		r.ip(a.Host, fmt.Sprintf("%s route add unreachable %s", family, pods))
	}
	r.check(once(slices.Concat(
		toEach(kinds, "there", from("node-a").reaches("b1").seenAs("node-a")), toEach(externalKinds, "there", from("a3").reaches("b1").seenAs("node-a")),
		toEach(kinds, "here", from("outside").reaches("a1")), []probe{from("a3").to(clusterIP, "there").reaches("b1").seenAs("a3")},
	))...)
}

// othersMarks sends packets with each mark that other programs may have given
// them; 0xca6c is WireGuard's (kubernetes/kubernetes#113659). Those that rules
// mark before they reach ours are forwarded, too.
func othersMarks(r *run) {
	r.sync(wideWorld())
	marks := []uint32{0xca6c, 0xe1f1, 0xffffffff}
	const whole = 3
	for bit := range 32 {
		marks = append(marks, 1<<bit)
	}
	var probes []probe
	for _, mark := range marks {
		p := from("node-a").toAddr(fmt.Sprintf("outside itself, with mark %#x", mark), r.straight("outside")).reaches("outside").seenAs("node-a").once()
		q := from("node-a").to(clusterIP, "there").reaches("b1").seenAs("node-a").once()
		p.mark, q.mark = mark, mark
		probes = append(probes, p, q)
	}
	r.check(probes...)
	for _, mark := range marks[:whole] {
		r.sh(r.node("node-a").Host, fmt.Sprintf("nft 'table inet marks { chain pre { type filter hook prerouting priority -310; meta mark set %#x; }; }'", mark))
		r.check(once([]probe{
			from("outside").toAddr(fmt.Sprintf("pod a1 itself, with mark %#x", mark), r.straight("a1")).reaches("a1"),
			from("a3").toAddr(fmt.Sprintf("pod b1 itself, with mark %#x", mark), r.straight("b1")).reaches("b1"),
			from("outside").toNodePort("there", "node-a").reaches("b1"), from("a3").to(clusterIP, "there").reaches("b1"), from("a3").to(clusterIP, "empty").rejected(),
			from("outside").toNodePort("kept", "node-a").reaches("a1").seenAs("outside"),
		})...)
		r.sh(r.node("node-a").Host, "nft delete table inet marks")
	}
}

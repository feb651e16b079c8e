package conformance

import (
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// KUBE-PROXY §1.10: on which addresses NodePorts answer.

// second are addresses that node-a gets beside its own.
var second = []netip.Prefix{netip.MustParsePrefix("10.20.1.77/24"), netip.MustParsePrefix("fd20:0:0:1::77/64")}

func secondAddr(family dataplane.Family) netip.Addr {
	if family == dataplane.IPv4 {
		return second[0].Addr()
	}
	return second[1].Addr()
}

// withSecond gives node-a its second addresses until the case ends.
func (r *run) withSecond() {
	r.Helper()
	a := r.node("node-a")
	for _, p := range second {
		r.must(a.AddAddress("eth0", p))
		r.Cleanup(func() { _ = a.RemoveAddress("eth0", p) }) // may be gone already
	}
}

// at is the NodePort of web at an address of each family.
func (r *run) at(addr func(dataplane.Family) netip.Addr) func(dataplane.Family) netip.AddrPort {
	return func(family dataplane.Family) netip.AddrPort {
		return netip.AddrPortFrom(addr(family), r.frontendAddr(r.service("web"), nodePort, family).Port())
	}
}

func nodePortCases() []testCase {
	web := service{name: "web", frontends: []frontend{{kind: nodePort, pool: on("a1 b1"), snat: dataplane.SNATAll}}}
	both := func(n *netlab.Node) []netip.Prefix {
		if n.Name != "node-a" {
			return eth0(n)
		}
		return append(eth0(n), singles(second[0].Addr(), second[1].Addr())...)
	}
	return []testCase{
		{"§1.10", "NodePorts answer on each address that takes them, on every node, from everywhere", func(r *run) {
			r.withSecond()
			r.sync(world{services: []service{web}, nodePorts: both})
			var probes []probe
			for _, client := range []string{"a3", "b3", "node-a", "node-b", "outside"} {
				probes = append(probes,
					from(client).toNodePort("web", "node-a").reaches("a1 b1"), from(client).toNodePort("web", "node-b").reaches("a1 b1"),
					from(client).toAddr("the NodePort on the second address", r.at(secondAddr)).reaches("a1 b1"),
				)
			}
			r.check(probes...)
		}},
		{"§1.10", "NodePorts do not answer on an address that nodePortAddresses leaves out", func(r *run) {
			r.withSecond()
			r.sync(world{services: []service{web}})
			var probes []probe
			for _, client := range []string{"a3", "node-a", "outside"} {
				probes = append(probes,
					from(client).toNodePort("web", "node-a").reaches("a1 b1"),
					from(client).toAddr("the NodePort on the second address", r.at(secondAddr)).notServed(),
				)
			}
			r.check(probes...)
		}},
		{"§1.10", "NodePorts without endpoints reject only on the addresses that take them", func(r *run) {
			r.withSecond()
			// node-a serves on the NodePort's own number; the second address is not ours.
			empty := service{name: "web", frontends: []frontend{{kind: nodePort, pool: on(""), snat: dataplane.SNATAll}}}
			r.sync(world{services: []service{empty}})
			port := r.frontendAddr(empty, nodePort, dataplane.IPv4).Port()
			for _, protocol := range []string{netlab.TCP, netlab.UDP} {
				server, err := r.node("node-a").Serve(protocol, port, second[0].Addr(), second[1].Addr())
				r.must(err)
				defer func() { _ = server.Stop() }()
			}
			noSCTP := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
			r.check(
				from("outside").toNodePort("web", "node-a").rejected(),
				from("outside").toAddr("the same port on the second address", r.at(secondAddr)).in(noSCTP...).reaches("node-a").seenAs("outside"),
			)
		}},
		{"§1.10", "NodePorts follow addresses that come and go while nothing else changes", func(r *run) {
			one, two := world{services: []service{web}}, world{services: []service{web}, nodePorts: both}
			onSecond := func() probe {
				return from("outside").toAddr("the NodePort on the second address", r.at(secondAddr))
			}
			r.sync(one)
			r.withSecond()
			r.check(onSecond().notServed())
			r.sync(two)
			r.check(onSecond().reaches("a1 b1"), from("outside").toNodePort("web", "node-a").reaches("a1 b1"))
			r.sync(one)
			r.check(onSecond().notServed(), from("outside").toNodePort("web", "node-a").reaches("a1 b1"))
		}},
		{"§1.10", "a node without NodePort addresses serves none, and everything else", func(r *run) {
			none := func(*netlab.Node) []netip.Prefix { return nil }
			r.sync(world{services: []service{{name: "web", frontends: frontendsOf(kinds, frontend{pool: on("a1 b1"), snat: dataplane.SNATAll})}}, nodePorts: none})
			r.check(
				from("outside").toNodePort("web", "node-a").notServed(), from("a3").toNodePort("web", "node-a").notServed(), from("node-a").toNodePort("web", "node-a").notServed(),
				from("outside").to(clusterIP, "web").reaches("a1 b1"), from("outside").to(loadBalancer, "web").reaches("a1 b1"),
			)
		}},
		{"§1.10", "a NodePort's number means nothing at an address that is not the node's", func(r *run) {
			r.sync(world{services: []service{web}})
			ofPod := r.at(func(family dataplane.Family) netip.Addr { return r.host("a2").Addr(int(family)) })
			r.check(from("outside").toAddr("that port of pod a2", ofPod).notServed(), from("a3").toAddr("that port of pod a2", ofPod).notServed())
		}},
		{"§1.10", "NodePorts answer on localhost where it takes them, and else not", func(r *run) {
			loopback := func(n *netlab.Node) []netip.Prefix { return append(eth0(n), netip.MustParsePrefix("127.0.0.0/8")) }
			on127 := r.at(func(dataplane.Family) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
			onHigh := r.at(func(dataplane.Family) netip.Addr { return netip.MustParseAddr("127.1.2.3") })
			r.sync(world{services: []service{web}})
			r.check(from("node-a").toAddr("the NodePort on localhost", on127).over(dataplane.IPv4).notServed())
			r.sync(world{services: []service{web}, nodePorts: loopback})
			r.check(
				from("node-a").toAddr("the NodePort on localhost", on127).over(dataplane.IPv4).reaches("a1 b1").seenAs("node-a"),
				from("node-a").toAddr("the NodePort on 127.1.2.3", onHigh).over(dataplane.IPv4).reaches("a1 b1").seenAs("node-a"),
			)
		}},
		{"§1.10", "localhost NodePorts open 127.0.0.0/8 to nobody else", strangersAtLocalhost},
	}
}

// strangersAtLocalhost lets a pod send packets to 127.0.0.2 of its node. With
// route_localnet the kernel would take them; a server that listens only there
// must not see them, NodePorts or not.
func strangersAtLocalhost(r *run) {
	loopback := func(n *netlab.Node) []netip.Prefix { return append(eth0(n), netip.MustParsePrefix("127.0.0.0/8")) }
	web := service{name: "web", frontends: []frontend{{kind: nodePort, pool: on("a1 b1"), snat: dataplane.SNATAll}}}
	r.sync(world{services: []service{web}, nodePorts: loopback})
	local := netip.MustParseAddr("127.0.0.2")
	for _, protocol := range []string{netlab.TCP, netlab.UDP} {
		server, err := r.node("node-a").Serve(protocol, 9999, local)
		r.must(err)
		defer func() { _ = server.Stop() }()
	}
	_, err := r.host("a4").Run(r.Context(), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet && "+
		"ip route del local 127.0.0.0/8 dev lo table local && ip route add 127.0.0.2/32 via 169.254.1.1 dev eth0 onlink src "+r.host("a4").Addr(4).String())
	r.must(err)
	defer func() {
		_, err := r.host("a4").Run(r.Context(), "sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/all/route_localnet; "+
			"ip route del 127.0.0.2/32; ip route add local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1")
		r.must(err)
	}()
	noSCTP := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
	server := func(dataplane.Family) netip.AddrPort { return netip.AddrPortFrom(local, 9999) }
	// A NodePort there could be served or not: what the pod must not reach is the node's own.
	r.check(
		from("node-a").toAddr("a server on the node's localhost", server).in(noSCTP...).over(dataplane.IPv4).reaches("node-a"),
		from("a4").toAddr("a server on the node's localhost", server).in(noSCTP...).over(dataplane.IPv4).notServed(),
	)
}

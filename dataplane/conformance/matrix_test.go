package conformance

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// KUBE-PROXY §1.5: who reaches which pool, and with which source address.

// everywhere are the endpoints of the matrix: two on each node.
const everywhere = "a1 a2 b1 b2"

// The pools of the matrix: all endpoints, and those of the node where the
// packet comes in.
var poolWords = map[string]string{"all": everywhere, "own": "a1 a2", "own-b": "b1 b2"}

// row is who gets what from a frontend of one policy: "POOL/SOURCE", the pool
// that answers and the host whose address the endpoint sees. The columns are
// how pods are told apart: by all pods' addresses (ClusterCIDR), by this
// node's pods (NodeCIDR, InterfaceNamePrefix), not at all, and with
// masqueradeAll.
type row struct {
	from                              string
	to                                dataplane.Kind
	cluster, node, none, masqueradAll string
}

// matrix has a table for each pair of traffic policies. NodePorts are those of
// node-a, and node-a is where packets from outside to the other frontends
// arrive.
var matrix = map[string][]row{
	"internal Cluster, external Cluster": {
		{"a3", clusterIP, "all/a3", "all/a3", "all/a3", "all/node-a"},
		{"b3", clusterIP, "all/b3", "all/b3", "all/b3", "all/node-b"},
		{"node-a", clusterIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", clusterIP, "all/node-a", "all/node-a", "all/outside", "all/node-a"},
		{"a3", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"b3", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-a", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-b", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"a3", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-a", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"a3", externalIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-a", externalIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", externalIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
	},
	"internal Cluster, external Local": {
		{"a3", clusterIP, "all/a3", "all/a3", "all/a3", "all/node-a"},
		{"node-a", clusterIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", clusterIP, "all/node-a", "all/node-a", "all/outside", "all/node-a"},
		{"a3", nodePort, "all/a3", "all/a3", "own/a3", "all/a3"},
		{"b3", nodePort, "all/b3", "own/b3", "own/b3", "all/b3"}, // ClusterCIDR takes another node's pod for one of ours
		{"node-a", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-b", nodePort, "own/node-b", "own/node-b", "own/node-b", "own/node-b"},
		{"outside", nodePort, "own/outside", "own/outside", "own/outside", "own/outside"},
		{"a3", loadBalancer, "all/a3", "all/a3", "own/a3", "all/a3"},
		{"node-a", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", loadBalancer, "own/outside", "own/outside", "own/outside", "own/outside"},
		{"a3", externalIP, "all/a3", "all/a3", "own/a3", "all/a3"},
		{"node-a", externalIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", externalIP, "own/outside", "own/outside", "own/outside", "own/outside"},
	},
	"internal Local, external Cluster": {
		{"a3", clusterIP, "own/a3", "own/a3", "own/a3", "own/node-a"},
		{"b3", clusterIP, "own-b/b3", "own-b/b3", "own-b/b3", "own-b/node-b"},
		{"node-a", clusterIP, "own/node-a", "own/node-a", "own/node-a", "own/node-a"},
		{"outside", clusterIP, "own/node-a", "own/node-a", "own/outside", "own/node-a"},
		{"a3", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-a", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", nodePort, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"a3", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"node-a", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", loadBalancer, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
		{"outside", externalIP, "all/node-a", "all/node-a", "all/node-a", "all/node-a"},
	},
}

// policyService is a Service of these policies as watcher makes it; internal
// is the ClusterIP's SNAT.
func policyService(policies string, internal dataplane.SNAT) service {
	inner, outer, snat := on(everywhere), frontend{pool: on(everywhere)}, dataplane.SNATAll
	if strings.HasPrefix(policies, "internal Local") {
		inner = own(everywhere)
	}
	if strings.HasSuffix(policies, "external Local") {
		outer, snat = frontend{pool: own(everywhere)}.or(on(everywhere)), dataplane.SNATNode
	}
	s := service{name: "web", frontends: []frontend{{kind: clusterIP, pool: inner, snat: internal}}}
	for _, kind := range []dataplane.Kind{externalIP, loadBalancer, nodePort} {
		outer.kind, outer.snat = kind, snat
		s.frontends = append(s.frontends, outer)
	}
	return s
}

func matrixCases() []testCase {
	var cases []testCase
	for _, policies := range []string{"internal Cluster, external Cluster", "internal Cluster, external Local", "internal Local, external Cluster"} {
		for _, d := range []struct {
			name     string
			pods     detector
			internal dataplane.SNAT
			cell     func(row) string
		}{
			{"pods told by ClusterCIDR", byCIDR, dataplane.SNATNonPods, func(r row) string { return r.cluster }},
			{"pods told by NodeCIDR", byNodeCIDR, dataplane.SNATNonPods, func(r row) string { return r.node }},
			{"pods told by interface prefix", byPrefix, dataplane.SNATNonPods, func(r row) string { return r.node }},
			{"pods not told", byNothing, dataplane.SNATNone, func(r row) string { return r.none }},
			{"masqueradeAll", byCIDR, dataplane.SNATAll, func(r row) string { return r.masqueradAll }},
		} {
			cases = append(cases, testCase{"§1.5", "who reaches what: " + policies + "; " + d.name, func(r *run) {
				withLocalhost := func(n *netlab.Node) []netip.Prefix {
					return append(eth0(n), netip.MustParsePrefix("127.0.0.0/8"))
				}
				r.sync(world{services: []service{policyService(policies, d.internal)}, pods: d.pods, nodePorts: withLocalhost})
				var probes []probe
				for _, row := range matrix[policies] {
					probes = append(probes, row.probe(d.cell(row)))
				}
				localhost := func(family dataplane.Family) netip.AddrPort {
					port := r.frontendAddr(r.service("web"), nodePort, family).Port()
					return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
				}
				r.check(append(probes, from("node-a").toAddr("the NodePort on localhost", localhost).over(dataplane.IPv4).reaches(everywhere).seenAs("node-a"))...)
			}})
		}
	}
	return append(cases, testCase{"§1.5", "external policy Local keeps the client's address where the ClusterIP has the same pool", func(r *run) {
		s := service{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1 a2"), snat: dataplane.SNATNonPods}}}
		for _, kind := range []dataplane.Kind{externalIP, loadBalancer, nodePort} {
			s.frontends = append(s.frontends, frontend{kind: kind, pool: on("a1 a2"), snat: dataplane.SNATNode})
		}
		r.sync(world{services: []service{s}})
		probes := []probe{
			from("outside").to(clusterIP, "web").reaches("a1 a2").seenAs("node-a"),
			from("a3").to(clusterIP, "web").reaches("a1 a2").seenAs("a3"),
			from("outside").toNodePort("web", "node-a").reaches("a1 a2").seenAs("outside"),
			from("a3").toNodePort("web", "node-a").reaches("a1 a2").seenAs("a3"),
			from("node-a").toNodePort("web", "node-a").reaches("a1 a2").seenAs("node-a"),
		}
		for _, kind := range []dataplane.Kind{externalIP, loadBalancer} {
			probes = append(probes, from("outside").to(kind, "web").reaches("a1 a2").seenAs("outside"))
		}
		r.check(probes...)
	}})
}

// probe is a row's sentence for one cell.
func (w row) probe(cell string) probe {
	pool, as, _ := strings.Cut(cell, "/")
	p := from(w.from).to(w.to, "web").reaches(poolWords[pool]).seenAs(as)
	if w.to == nodePort {
		p.node = "node-a"
	}
	// Who comes to node-a with an address that stays gets node-b's endpoints'
	// answers straight from them, and cannot know them for what they are.
	comesIn := w.from == "outside" || w.to == nodePort && slices.Contains([]string{"b3", "node-b"}, w.from)
	if comesIn && as == w.from && pool == "all" {
		p = p.butNotFrom("b1 b2")
	}
	return p
}

// Package cluster runs a Kubernetes control plane and three nodes on one machine,
// each in a network namespace of its own.
package cluster

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
)

// Names of the namespaces, and of the cgroup above everything that the lab runs.
const (
	prefix  = "switchyard-e2e-"
	Control = prefix + "control" // etcd, the API server and its helpers, the bridge
	Outside = prefix + "ext"     // a client that is no part of the cluster
	group   = "switchyard-e2e"
)

// Ports and names that several programs have to agree on.
const (
	apiPort     = 6443
	HealthPort  = 10256 // of the agent, kube-proxy's default
	metricsPort = 10249
	// Image is the only image in the lab. Its last part is a tag on purpose:
	// with "latest" kubelet would ask a registry.
	Image = "switchyard.test/agnhost:lab"
)

// Node is one machine of the cluster.
type Node struct {
	Name   string
	Zone   string
	V4, V6 netip.Addr
	Pods4  netip.Prefix // addresses of its pods
	Pods6  netip.Prefix
}

// Namespace is the node's network namespace.
func (n Node) Namespace() string { return prefix + n.Name }

// group is the cgroup of all that runs on the node, its pods included.
func (n Node) group() string { return filepath.Join(group, n.Name) }

// system is the cgroup of the node's own programs. cgroup v2 allows no process
// in a group that has groups with controllers below it, so they need one too.
func (n Node) system() string { return systemOn(n.Name) }

func systemOn(node string) string { return filepath.Join(group, node, "system") }

// Topology is the lab's address plan.
type Topology struct {
	Lan4, Lan6           netip.Prefix // nodes, control plane and outside client
	Control4, Control6   netip.Addr
	Outside4, Outside6   netip.Addr
	Pods4, Pods6         netip.Prefix // all nodes' pods
	Services4, Services6 netip.Prefix
	Balancer4, Balancer6 netip.Prefix // addresses of load balancers
	Nodes                []Node
}

// DefaultTopology is three nodes, each in a zone, with both address families.
// Its ranges exist in the lab's namespaces only.
func DefaultTopology() Topology {
	t := Topology{
		Lan4: netip.MustParsePrefix("10.90.0.0/24"), Lan6: netip.MustParsePrefix("fd00:90::/64"),
		Control4: netip.MustParseAddr("10.90.0.1"), Control6: netip.MustParseAddr("fd00:90::1"),
		Outside4: netip.MustParseAddr("10.90.0.100"), Outside6: netip.MustParseAddr("fd00:90::100"),
		Pods4: netip.MustParsePrefix("10.244.0.0/16"), Pods6: netip.MustParsePrefix("fd00:244::/56"),
		Services4: netip.MustParsePrefix("10.96.0.0/16"), Services6: netip.MustParsePrefix("fd00:96::/112"),
		Balancer4: netip.MustParsePrefix("10.91.0.0/24"), Balancer6: netip.MustParsePrefix("fd00:91::/112"),
	}
	for i := 1; i <= 3; i++ {
		t.Nodes = append(t.Nodes, Node{
			Name: fmt.Sprintf("node%d", i), Zone: fmt.Sprintf("zone%d", i),
			V4:    netip.MustParseAddr(fmt.Sprintf("10.90.0.%d", 10+i)),
			V6:    netip.MustParseAddr(fmt.Sprintf("fd00:90::%d", 10+i)),
			Pods4: netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
			Pods6: netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i)),
		})
	}
	return t
}

// podRoutes leads to the pods of every node except the one named except.
func (t Topology) podRoutes(except string) []network.Route {
	var routes []network.Route
	for _, n := range t.Nodes {
		if n.Name != except {
			routes = append(routes, network.Route{To: n.Pods4, Via: n.V4}, network.Route{To: n.Pods6, Via: n.V6})
		}
	}
	return routes
}

func (t Topology) hub() network.Hub {
	return network.Hub{
		Namespace: Control,
		Addrs:     t.onLan(t.Control4, t.Control6),
		Routes:    t.podRoutes(""),
	}
}

func (t Topology) leaves() []network.Leaf {
	// The outside client reaches ClusterIPs through the first node, as behind a
	// router that has a route for them. It has no route to the pods.
	first := t.Nodes[0]
	leaves := []network.Leaf{{
		Namespace: Outside, Port: "ext", Addrs: t.onLan(t.Outside4, t.Outside6),
		Routes: []network.Route{{To: t.Services4, Via: first.V4}, {To: t.Services6, Via: first.V6},
			{To: t.Balancer4, Via: first.V4}, {To: t.Balancer6, Via: first.V6}},
	}}
	for _, n := range t.Nodes {
		// A node needs a route for ClusterIPs too, or its own connections to
		// them would end in "unreachable" before any rule sees them.
		routes := append(t.podRoutes(n.Name),
			network.Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: t.Control4},
			network.Route{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: t.Control6})
		leaves = append(leaves, network.Leaf{
			Namespace: n.Namespace(), Port: n.Name, Addrs: t.onLan(n.V4, n.V6), Routes: routes, Forward: true,
		})
	}
	return leaves
}

func (t Topology) onLan(v4, v6 netip.Addr) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(v4, t.Lan4.Bits()), netip.PrefixFrom(v6, t.Lan6.Bits())}
}

// clusterIP is the address of the API server's own Service: the range's first.
func (t Topology) clusterIP() netip.Addr { return t.Services4.Masked().Addr().Next() }

func pair(a, b fmt.Stringer) string { return a.String() + "," + b.String() }

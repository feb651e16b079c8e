package conformance

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Every Service of a case exists in each of these, so that every case is about
// six ServicePorts.
var (
	protocols = []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}
	families  = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
)

// The kinds of frontend.
const (
	clusterIP    = dataplane.ClusterIP
	externalIP   = dataplane.ExternalIP
	loadBalancer = dataplane.LoadBalancer
	nodePort     = dataplane.NodePort
)

// world is what both nodes are to forward: a case in Snapshot terms, less
// names and addresses.
type world struct {
	services []service
	pods     detector
	// nodePorts are the addresses of a node that take NodePorts; nil: those of eth0.
	nodePorts func(*netlab.Node) []netip.Prefix
	// bound are addresses that the nodes have themselves, or the one of boundOn alone.
	bound   []netip.Prefix
	boundOn string
}

// service is one Service.
type service struct {
	name      string
	frontends []frontend
	affinity  time.Duration
	only      dataplane.Protocol // 0: all three
	addrOf    string             // the service whose addresses it shares; "": it has its own
	port      uint16             // of its addresses; 0: frontendPort
}

// frontend is a frontend of each of a service's six ServicePorts.
type frontend struct {
	kind    dataplane.Kind
	pool    pool
	inside  *pool // nil: none of its own
	snat    dataplane.SNAT
	sources []netip.Prefix // of either family
}

// pool is endpoints by the names of their hosts.
type pool struct {
	on      string // separated by spaces
	own     bool   // on each node only those that are on this node
	nowhere bool   // nobody says on which nodes they are
	ifEmpty dataplane.Verdict
}

// on is a pool of these hosts; without any it rejects.
func on(hosts string) pool { return pool{on: hosts} }

// own is, on each node, a pool of just those hosts that are on that node;
// without any it drops.
func own(hosts string) pool { return pool{on: hosts, own: true, ifEmpty: dataplane.Drop} }

// or is the frontend with a pool of its own for the node and its pods.
func (f frontend) or(inside pool) frontend {
	f.inside = &inside
	return f
}

// detector is how pods are told: detectLocalMode.
type detector int

const (
	byCIDR     detector = iota // ClusterCIDR: all pods of the cluster
	byNodeCIDR                 // NodeCIDR: this node's pods
	byPrefix                   // InterfaceNamePrefix
	byNothing                  // no detector
)

func (d detector) localPods(n *netlab.Node) dataplane.LocalPods {
	switch d {
	case byCIDR:
		return dataplane.LocalPods{CIDRs: netlab.ClusterCIDRs()}
	case byNodeCIDR:
		return dataplane.LocalPods{CIDRs: n.PodCIDRs}
	case byPrefix:
		return dataplane.LocalPods{InterfacePrefix: netlab.PodInterfacePrefix}
	}
	return dataplane.LocalPods{}
}

// eth0 are a node's own addresses.
func eth0(n *netlab.Node) []netip.Prefix { return singles(n.Addrs...) }

func singles(addrs ...netip.Addr) []netip.Prefix {
	var ps []netip.Prefix
	for _, a := range addrs {
		ps = append(ps, netip.PrefixFrom(a, a.BitLen()))
	}
	return ps
}

func prefixes(texts []string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// snapshot is the world as one node must forward it.
func (w world) snapshot(r *run, n *netlab.Node) *dataplane.Snapshot {
	nodePorts := eth0
	if w.nodePorts != nil {
		nodePorts = w.nodePorts
	}
	addrs := nodePorts(n)
	slices.SortFunc(addrs, netip.Prefix.Compare)
	s := &dataplane.Snapshot{
		Revision:     1,
		Node:         &dataplane.Node{Name: n.Name, NodePorts: addrs, Bound: w.boundAt(n), LocalPods: w.pods.localPods(n)},
		ServiceCIDRs: prefixes([]string{clusterIPs4, clusterIPs6}),
	}
	var ports []*dataplane.ServicePort
	for _, svc := range w.services {
		for _, protocol := range protocols {
			if svc.only != 0 && svc.only != protocol {
				continue
			}
			for _, family := range families {
				ports = append(ports, svc.servicePort(r, n, protocol, family))
			}
		}
	}
	s.Ports = dataplane.MakePorts(ports...)
	return s
}

func (w world) boundAt(n *netlab.Node) []netip.Prefix {
	if w.boundOn != "" && w.boundOn != n.Name {
		return nil
	}
	return w.bound
}

// id names a ServicePort; the case's number keeps what a backend remembers
// (affinity) from one case to another apart.
func (s service) id(r *run, protocol dataplane.Protocol, family dataplane.Family) dataplane.PortID {
	return dataplane.PortID{Namespace: fmt.Sprintf("case-%d", r.id), Service: s.name, Port: strings.ToLower(protocol.String()), Protocol: protocol, Family: family}
}

func (s service) servicePort(r *run, n *netlab.Node, protocol dataplane.Protocol, family dataplane.Family) *dataplane.ServicePort {
	p := &dataplane.ServicePort{ID: s.id(r, protocol, family), Affinity: s.affinity}
	var pools []*dataplane.Pool
	build := func(spec pool) *dataplane.Pool {
		made := spec.build(r, n, family)
		for _, known := range pools {
			if known.IfEmpty == made.IfEmpty && slices.Equal(known.Endpoints, made.Endpoints) {
				return known
			}
		}
		pools = append(pools, made)
		return made
	}
	for _, spec := range s.frontends {
		f := dataplane.Frontend{Kind: spec.kind, Addr: r.frontendAddr(s, spec.kind, family), Pool: build(spec.pool), SNAT: spec.snat}
		if spec.inside != nil {
			if inside := build(*spec.inside); inside != f.Pool {
				f.Inside = inside
			}
		}
		for _, src := range spec.sources {
			if dataplane.FamilyOf(src.Addr()) == family {
				f.Sources = append(f.Sources, src)
			}
		}
		slices.SortFunc(f.Sources, netip.Prefix.Compare)
		p.Frontends = append(p.Frontends, f)
	}
	slices.SortFunc(p.Frontends, func(a, b dataplane.Frontend) int { return int(a.Kind) - int(b.Kind) })
	for _, pool := range pools {
		p.Serving = append(p.Serving, pool.Endpoints...)
	}
	slices.SortFunc(p.Serving, func(a, b dataplane.Endpoint) int { return a.Addr.Compare(b.Addr) })
	p.Serving = slices.CompactFunc(p.Serving, func(a, b dataplane.Endpoint) bool { return a.Addr == b.Addr })
	return p
}

func (p pool) build(r *run, n *netlab.Node, family dataplane.Family) *dataplane.Pool {
	built := &dataplane.Pool{IfEmpty: p.ifEmpty}
	for name := range strings.FieldsSeq(p.on) {
		h := r.host(name)
		local := h == n.Host || slices.Contains(n.Pods, h)
		if p.own && !local {
			continue
		}
		addr := netip.AddrPortFrom(h.Addr(int(family)), serverPort)
		built.Endpoints = append(built.Endpoints, dataplane.Endpoint{Addr: addr, Local: local && !p.nowhere, Unplaced: p.nowhere})
	}
	slices.SortFunc(built.Endpoints, func(a, b dataplane.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return built
}

// host is a host by name.
func (r *run) host(name string) *netlab.Host {
	h := r.lab.Host(name)
	if h == nil {
		r.Fatalf("there is no host %q", name)
	}
	return h
}

// frontendPort is the port of all ClusterIPs, load balancer and external IPs
// but those of services that say otherwise.
const frontendPort = 80

// frontendAddr is where a service answers; each case and service has addresses
// of its own, but for services that share them. A NodePort has the unspecified
// address.
func (r *run) frontendAddr(s service, kind dataplane.Kind, family dataplane.Family) netip.AddrPort {
	if kind == nodePort {
		const first, most = 20000, 12000 // below what kernels give to clients
		return netip.AddrPortFrom(family.Unspecified(), uint16(first+r.serviceNumber(s.name)%most))
	}
	i := r.serviceNumber(cmp.Or(s.addrOf, s.name))
	return netip.AddrPortFrom(r.vip(kind, family, i), cmp.Or(s.port, frontendPort))
}

// vip is the i-th address of a kind.
func (r *run) vip(kind dataplane.Kind, family dataplane.Family, i int) netip.Addr {
	ranges := map[dataplane.Kind][2]string{
		clusterIP: {clusterIPs4, clusterIPs6}, loadBalancer: {balancers4, balancers6}, externalIP: {externals4, externals6},
	}[kind]
	p := netip.MustParsePrefix(ranges[0])
	if family == dataplane.IPv6 {
		p = netip.MustParsePrefix(ranges[1])
	}
	b := p.Addr().AsSlice()
	b[len(b)-2], b[len(b)-1] = byte(i>>8), byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// serviceNumber counts the column's services from 1, in order of appearance. A
// service keeps its number, and so its addresses, for the whole case; no other
// case has them, so that no flow of an earlier case is taken for one of it.
func (r *run) serviceNumber(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.numbers[name] == 0 {
		if r.numbers == nil {
			r.numbers = map[string]int{}
		}
		r.services++
		r.numbers[name] = r.services
	}
	return r.numbers[name]
}

// service is a service of the case's world by name.
func (r *run) service(name string) service {
	for _, s := range r.world.services {
		if s.name == name {
			return s
		}
	}
	r.Fatalf("the case has no service %q", name)
	return service{}
}

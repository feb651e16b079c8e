package costs

import (
	"fmt"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Addresses of the lab. A Service's endpoints are where nobody is, but for the
// one endpoint of the Service that packets are sent to.
const (
	noEndpoints = "10.128.0.0/9"
	nobody      = "198.51.100.1"
	serviceCIDR = "10.96.0.0/12"
	askedAddr   = "10.111.0.1"
	askedPort   = 80
	lostAddr    = "10.111.0.2:80"
	nodePort    = 30080
	servedPort  = 8080
	endpointsOf = 4 // of each of the many Services
)

// world is what a node's Snapshots are made of.
type world struct {
	Node  netip.Addr
	Pods  netip.Prefix
	Asked netip.Addr // of the one endpoint that exists
}

// snapshot returns so many Services. Packets are sent to two of them.
func (w world) snapshot(n int) *dataplane.Snapshot {
	ports := []*dataplane.ServicePort{w.asked(), lost()}
	for i := len(ports); i < n; i++ {
		ports = append(ports, service(i, 0))
	}
	return &dataplane.Snapshot{
		Revision: 1,
		Node: &dataplane.Node{
			Name: "node-a", NodePorts: []netip.Prefix{netip.PrefixFrom(w.Node, w.Node.BitLen())},
			LocalPods: dataplane.LocalPods{CIDRs: []netip.Prefix{w.Pods}},
		},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix(serviceCIDR)},
		Ports:        dataplane.MakePorts(ports...),
	}
}

// asked returns the Service whose endpoint exists. It has a NodePort.
func (w world) asked() *dataplane.ServicePort {
	pool := &dataplane.Pool{Endpoints: []dataplane.Endpoint{{Addr: netip.AddrPortFrom(w.Asked, servedPort), Local: true}}}
	return &dataplane.ServicePort{
		ID: dataplane.PortID{Namespace: "costs", Service: "asked", Port: "dns", Protocol: dataplane.UDP, Family: dataplane.IPv4},
		Frontends: []dataplane.Frontend{
			{Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(netip.MustParseAddr(askedAddr), askedPort), Pool: pool, SNAT: dataplane.SNATNonPods},
			{Kind: dataplane.NodePort, Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), nodePort), Pool: pool, SNAT: dataplane.SNATAll},
		},
	}
}

// lost returns the Service that datagrams are sent to which nobody shall get.
func lost() *dataplane.ServicePort {
	p := service(0, 0)
	p.ID.Service, p.ID.Protocol = "lost", dataplane.UDP
	p.Frontends[0].Addr = netip.MustParseAddrPort(lostAddr)
	return p
}

// service returns Service i of many. version moves its last endpoint to another port.
func service(i int, version uint16) *dataplane.ServicePort {
	pool := &dataplane.Pool{}
	for e := range endpointsOf {
		n, port := i*endpointsOf+e, uint16(servedPort)
		if e == endpointsOf-1 {
			port += version
		}
		addr := netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)})
		pool.Endpoints = append(pool.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(addr, port)})
	}
	return &dataplane.ServicePort{
		ID: dataplane.PortID{Namespace: "costs", Service: fmt.Sprintf("web-%05d", i), Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		Frontends: []dataplane.Frontend{
			{Kind: dataplane.ClusterIP, Addr: clusterIP(i), Pool: pool, SNAT: dataplane.SNATNonPods},
		},
	}
}

// clusterIP returns where Service i of many answers. As in a cluster, the addresses
// are scattered over the range, and no two are the same.
func clusterIP(i int) netip.AddrPort {
	const scatter = 0x9e375 // odd, and so a permutation of the range's 2^20 addresses
	n := i * scatter % (1 << 20)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(96 + n>>16), byte(n >> 8), byte(n)}), 80)
}

// Change is what happens to a Snapshot.
type Change string

const (
	endpointChanged Change = "one changed endpoint"
	serviceAdded    Change = "one added Service"
)

// changes returns all of them.
func changes() []Change { return []Change{endpointChanged, serviceAdded} }

// apply returns the next Snapshot, and the one that takes the change back.
func (c Change) apply(s *dataplane.Snapshot, n int) (next, back *dataplane.Snapshot) {
	put, undo, remove := service(n/2, 1), []*dataplane.ServicePort{service(n/2, 0)}, []dataplane.PortID(nil)
	if c == serviceAdded {
		put = service(n, 0) // the first that is not there
		undo, remove = nil, []dataplane.PortID{put.ID}
	}
	to, from := *s, *s
	to.Ports = s.Ports.With([]*dataplane.ServicePort{put}, nil)
	from.Ports = to.Ports.With(undo, remove)
	return &to, &from
}

// Package facts is what forwarding needs of each API object, and nothing else of it.
//
// The watcher keeps facts and no API objects: parsed once, compact, comparable.
// Addresses are parsed as leniently as kube-proxy does and are canonical from
// then on (KUBE-PROXY §1.17).
package facts

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Name is the namespace and name of an object; the namespace is empty where
// the kind has none.
type Name struct{ Namespace, Name string }

// Compare orders Names by namespace, then name.
func (n Name) Compare(other Name) int {
	if c := strings.Compare(n.Namespace, other.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, other.Name)
}

func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// Service is a Service that has something to forward. Immutable.
type Service struct {
	Name    Name
	UID     string // for Events about it; "": unknown
	Created int64  // creationTimestamp, Unix seconds; 0: unknown
	Ports   []ServicePort
	// Addresses of both families, without duplicates, in the order of the object.
	ClusterIPs      []netip.Addr // at least one
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr   // ingress addresses with ipMode VIP
	SourceRanges    []netip.Prefix // of both families, masked; /0 included
	InternalLocal   bool           // internalTrafficPolicy: Local
	// ExternalLocal is externalTrafficPolicy: Local, where the type of the
	// Service lets it count (KUBE-PROXY §1.1).
	ExternalLocal   bool
	Affinity        time.Duration // sessionAffinity ClientIP; 0: none
	HealthCheckPort uint16        // 0: none (KUBE-PROXY §1.16)
	Scheduler       string        // SchedulerAnnotation; "": none
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol dataplane.Protocol
	Port     uint16
	NodePort uint16 // 0: none
}

// Equal reports whether two Services are the same.
func (s *Service) Equal(t *Service) bool {
	return s.Name == t.Name && s.UID == t.UID && s.Created == t.Created && slices.Equal(s.Ports, t.Ports) &&
		slices.Equal(s.ClusterIPs, t.ClusterIPs) && slices.Equal(s.ExternalIPs, t.ExternalIPs) &&
		slices.Equal(s.LoadBalancerIPs, t.LoadBalancerIPs) && slices.Equal(s.SourceRanges, t.SourceRanges) &&
		s.InternalLocal == t.InternalLocal && s.ExternalLocal == t.ExternalLocal &&
		s.Affinity == t.Affinity && s.HealthCheckPort == t.HealthCheckPort && s.Scheduler == t.Scheduler
}

// Slice is an EndpointSlice of a Service. Immutable.
type Slice struct {
	Name      Name
	Service   string // of the same namespace
	Family    dataplane.Family
	Ports     []SlicePort // those with a number; at most one of each name and protocol
	Endpoints []Endpoint  // sorted by address, as a rule
	// Trigger is when the change that the slice tells of happened, for the
	// metric network_programming_duration_seconds; zero: unknown.
	Trigger time.Time
}

// SlicePort is the number that a port name has in one EndpointSlice.
type SlicePort struct {
	Name     string
	Protocol dataplane.Protocol
	Port     uint16
}

// Endpoint is one endpoint of a Slice (KUBE-PROXY §1.2). What it says of nodes
// is said of this node only, but for its Place.
type Endpoint struct {
	Addr        netip.Addr
	Place       Place
	Ready       bool
	Serving     bool
	Terminating bool
	Local       bool // on this node
	NodeHinted  bool // hints name nodes
	ForThisNode bool // and this one is among them
}

// Place is where an endpoint is, and for which zones. There are few of them for
// many endpoints, so that each is kept once.
type Place struct{ handle unique.Handle[place] }

// place has hints as one text, because what is kept once has to be comparable.
type place struct{ node, zone, hints string }

// hint comes before each zone in place.hints.
const hint = "\x00"

// MakePlace makes the Place of a node and a zone; "" is unknown. hints are the
// zones that should use it.
func MakePlace(node, zone string, hints ...string) Place {
	p := place{node: node, zone: zone}
	if len(hints) > 0 {
		p.hints = hint + strings.Join(hints, hint)
	}
	if p == (place{}) {
		return Place{}
	}
	return Place{unique.Make(p)}
}

// Node is the name of the Node, or "".
func (p Place) Node() string { return p.get().node }

// Zone is the zone, or "".
func (p Place) Zone() string { return p.get().zone }

// Hinted reports whether hints name zones.
func (p Place) Hinted() bool { return p.get().hints != "" }

// HintedTo reports whether hints name this zone.
func (p Place) HintedTo(zone string) bool {
	hints, some := strings.CutPrefix(p.get().hints, hint)
	if !some {
		return false
	}
	for h := range strings.SplitSeq(hints, hint) {
		if h == zone {
			return true
		}
	}
	return false
}

func (p Place) get() place {
	if p == (Place{}) {
		return place{}
	}
	return p.handle.Value()
}

// Equal reports whether two Slices lead to the same forwarding: all but Trigger
// is the same.
func (s *Slice) Equal(t *Slice) bool {
	return s.Name == t.Name && s.Service == t.Service && s.Family == t.Family &&
		slices.Equal(s.Ports, t.Ports) && slices.Equal(s.Endpoints, t.Endpoints)
}

// Node is this node's own Node object. Immutable.
type Node struct {
	Name Name
	Zone string
	// IPs are the first address of each family, internal ones before external
	// ones; at most two.
	IPs      []netip.Addr
	PodCIDRs []netip.Prefix
	// Eligible is false while the Node is being deleted or drained by the
	// cluster autoscaler (KUBE-PROXY §2.3).
	Eligible bool
	// Final says that what is missing will not come, so that there is nothing
	// to wait for: a directory of manifests has said all it knows.
	Final bool
}

// Equal reports whether two Nodes are the same.
func (n *Node) Equal(m *Node) bool {
	return n.Name == m.Name && n.Zone == m.Zone && slices.Equal(n.IPs, m.IPs) &&
		slices.Equal(n.PodCIDRs, m.PodCIDRs) && n.Eligible == m.Eligible && n.Final == m.Final
}

// ServiceCIDR is a ServiceCIDR object. Immutable.
type ServiceCIDR struct {
	Name  Name
	CIDRs []netip.Prefix
}

// Change is one step of what a source of objects knows. It is taken as a whole.
type Change struct {
	Services     Delta[Service]
	Slices       Delta[Slice]
	Nodes        Delta[Node] // of this node only
	ServiceCIDRs Delta[ServiceCIDR]
}

// Delta is a step in one kind of objects. The zero value says nothing.
type Delta[T any] struct {
	// All says that Put is every object that there is. The first such Delta of
	// a kind is what makes the kind known.
	All    bool
	Put    []*T
	Remove []Name // never of an object in Put
}

// Package dataplane is Snapshot in, forwarding kernel out: the neutral types, the backend contract, the Syncer.
//
// A Snapshot says what the kernel of this node must forward. It names no
// Kubernetes type, and every policy in it is decided already: a Backend
// translates it and adds nothing.
package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Snapshot is the whole forwarding state that this node's kernel must have at
// one moment. It is immutable, and shares what did not change with the
// Snapshot before it, by pointer.
type Snapshot struct {
	Revision uint64 // grows with each Snapshot of one process; starts at 1
	Node     *Node  // never nil; the same pointer while nothing in it changes
	// ServiceCIDRs are the ranges that ClusterIPs are allocated from, sorted and
	// disjoint: none lies in another, and no two make up a wider one.
	// A new connection to an address of them that is no ClusterIP is dropped
	// (KUBE-PROXY §1.7). Empty: unknown, and nothing is dropped.
	ServiceCIDRs []netip.Prefix
	Ports        Ports
}

// RouteProtocol marks the local routes that a backend adds for the addresses of
// Services (`ip route show table local proto 83`). They make no address the node's.
const RouteProtocol = 83

// Node is what forwarding depends on beside the Services themselves.
type Node struct {
	Name string
	Zone string // topology.kubernetes.io/zone, or ""
	// NodePorts are this node's addresses where NodePorts answer, both
	// families, sorted. Most are one address each (/32, /128). Loopback is the
	// whole of 127.0.0.0/8. A local route to a prefix gives that prefix, or the
	// part of it that nodePortAddresses cover, and other elements may be within
	// it. The watcher has chosen them by nodePortAddresses, and follows the
	// node's addresses and local routes (KUBE-PROXY §1.10).
	NodePorts []netip.Prefix
	// Everywhere are the families in which nodePortAddresses cover every address,
	// sorted: what answers by listening then listens on all of them at once, those
	// included of which NodePorts does not know.
	Everywhere []Family
	// Bound are the addresses that are local on this node, on a device or by a
	// local route, sorted; both families. A Service address among them is the
	// node's as well.
	Bound     []netip.Prefix
	LocalPods LocalPods
}

// LocalPods tells a packet that this node's pods sent (KUBE-PROXY §1.13,
// detectLocalMode). At most one of the fields is set; none: no detector.
type LocalPods struct {
	CIDRs           []netip.Prefix // by source address, both families
	Interface       string         // by the name of the interface that it came in on
	InterfacePrefix string         // by the start of that name
}

// Detects reports whether packets of pods can be told apart in a family.
func (l LocalPods) Detects(f Family) bool {
	if l.Interface != "" || l.InterfacePrefix != "" {
		return true
	}
	for _, c := range l.CIDRs {
		if FamilyOf(c.Addr()) == f {
			return true
		}
	}
	return false
}

// PortID names one port of one Service in one address family.
type PortID struct {
	Namespace string
	Service   string
	Port      string // the port's name in the Service; may be ""
	Protocol  Protocol
	Family    Family
}

// Compare orders PortIDs by namespace, Service, port name, protocol, family.
func (id PortID) Compare(other PortID) int {
	return cmp.Or(
		strings.Compare(id.Namespace, other.Namespace),
		strings.Compare(id.Service, other.Service),
		strings.Compare(id.Port, other.Port),
		cmp.Compare(id.Protocol, other.Protocol),
		cmp.Compare(id.Family, other.Family),
	)
}

// String is for people: "shop/web:http/TCP/IPv4", without ":http" where the
// port has no name.
func (id PortID) String() string {
	name := id.Namespace + "/" + id.Service
	if id.Port != "" {
		name += ":" + id.Port
	}
	return fmt.Sprintf("%s/%s/%s", name, id.Protocol, id.Family)
}

// ServicePort is one port of a Service in one family: where it answers and who
// answers. Immutable.
type ServicePort struct {
	ID PortID
	// Frontends, sorted by kind, then address. No two ServicePorts of a
	// Snapshot have a frontend of the same address, port and protocol.
	Frontends []Frontend
	// Affinity is how long a client stays with its endpoint after its last new
	// connection, whole seconds from 1 s to 24 h; 0: no affinity. It is keyed by
	// the client's address and this ServicePort, whichever frontend is used
	// (KUBE-PROXY §1.11).
	Affinity time.Duration
	// Scheduler is how the IPVS backend chooses an endpoint, one of Schedulers; "":
	// as it does by default. The other backends pass it over.
	Scheduler string
	// HealthCheck is the Service's healthCheckNodePort; nil: none. The ports of
	// one Service share the pointer within a family.
	HealthCheck *HealthCheck
	// Serving are all endpoints that may keep the flows which they have, sorted,
	// whatever the policies say (KUBE-PROXY §1.15). conntrack ends flows to others.
	// As a rule they are those of a Pool, and share its memory.
	Serving []Endpoint
	// Ending are all endpoints whose pods are terminating, sorted. One that is in it
	// no more is gone for good; one that was never in it may have left the Service
	// and live on.
	Ending []netip.AddrPort
}

// Serves reports whether an endpoint may keep the flows that it has.
func (p *ServicePort) Serves(endpoint netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(p.Serving, endpoint, func(e Endpoint, a netip.AddrPort) int { return e.Addr.Compare(a) })
	return found
}

// Schedulers are the names that ServicePort.Scheduler can have: those of the
// kernel's IPVS that make sense for Services.
func Schedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "sh", "mh", "dh", "sed", "nq"}
}

// HealthCheck is what a Service's healthCheckNodePort tells a load balancer
// (KUBE-PROXY §1.16).
type HealthCheck struct {
	Port           uint16 // TCP, 1 to 65535
	LocalEndpoints int    // distinct addresses of ready endpoints on this node, in this family
}

// Frontend is an address and port that clients connect to.
type Frontend struct {
	Kind Kind
	// Addr; of a NodePort the unspecified address of the family, meaning each of
	// Node.NodePorts.
	Addr netip.AddrPort
	// Pool answers every client that Inside does not. Never nil.
	Pool *Pool
	// Inside answers clients on the node itself and, where Node.LocalPods can
	// tell them, its pods. nil: Pool answers them too (KUBE-PROXY §1.5).
	Inside *Pool
	// Sources are the only client addresses served, sorted and disjoint as
	// ServiceCIDRs are; others are dropped, pods and node included. Empty: anyone
	// (KUBE-PROXY §1.9).
	Sources []netip.Prefix
	SNAT    SNAT
}

// Pool is the endpoints that may answer. Frontends of one ServicePort share
// equal pools by pointer.
type Pool struct {
	Endpoints []Endpoint // sorted by address
	IfEmpty   Verdict    // what becomes of a new connection while there are no Endpoints
}

// Endpoint is one address and port that answers.
type Endpoint struct {
	Addr     netip.AddrPort
	Local    bool // on this node
	Unplaced bool // nobody says on which node
}

// MayBeHere reports whether an endpoint may be one of this node's, so that it may
// reach itself through a Service.
func (e Endpoint) MayBeHere() bool { return e.Local || e.Unplaced }

// Kind tells why a frontend exists. The order is the order of Frontends.
type Kind uint8

// The kinds of frontend.
const (
	ClusterIP Kind = iota + 1
	ExternalIP
	LoadBalancer
	NodePort
)

func (k Kind) String() string {
	switch k {
	case ClusterIP:
		return "ClusterIP"
	case ExternalIP:
		return "ExternalIP"
	case LoadBalancer:
		return "LoadBalancer"
	case NodePort:
		return "NodePort"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// SNAT says whose source address is masqueraded on the way to an endpoint.
// Whatever it says, hairpin traffic (an endpoint that reaches itself through
// the Service) is masqueraded, or it would never see its own answer.
type SNAT uint8

// The choices of SNAT.
const (
	SNATNone    SNAT = iota // nobody
	SNATNonPods             // everyone but this node's pods, as Node.LocalPods tells them
	SNATNode                // connections that the node itself opens
	SNATAll                 // everyone
)

func (s SNAT) String() string {
	switch s {
	case SNATNone:
		return "none"
	case SNATNonPods:
		return "all but pods"
	case SNATNode:
		return "node"
	case SNATAll:
		return "all"
	}
	return fmt.Sprintf("SNAT(%d)", uint8(s))
}

// Verdict is what becomes of a new connection that no endpoint can take
// (KUBE-PROXY §1.6).
type Verdict uint8

// The verdicts.
const (
	Reject Verdict = iota // at once, with ICMP port unreachable, or a reset to TCP
	Drop                  // in silence
)

func (v Verdict) String() string {
	if v == Drop {
		return "drop"
	}
	return "reject"
}

// Family is an address family; its value is the IP version.
type Family uint8

// The address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf is the family of an address; an IPv4-mapped IPv6 address is IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Unspecified is the family's all-zero address, which stands for any of the
// node's addresses in a NodePort frontend.
func (f Family) Unspecified() netip.Addr {
	if f == IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Protocol is a transport protocol; its value is the IANA number.
type Protocol uint8

// The transport protocols that a Service can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

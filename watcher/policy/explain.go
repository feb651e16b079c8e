package policy

import (
	"fmt"
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Reason is why an endpoint is not in a set. The functions that choose the sets
// give it, so that it cannot say anything else than what they do.
type Reason uint8

// The reasons.
const (
	Chosen      Reason = iota // it is in the set
	NotReady                  // and does not terminate either
	Terminating               // it still serves, and others are ready
	Stopped                   // it terminates and serves no more
	NotLocal                  // it is on another node, and the policy is Local
	OtherNode                 // hints give it to other nodes
	OtherZone                 // hints give it to other zones
)

func (r Reason) String() string {
	switch r {
	case Chosen:
		return "in use"
	case NotReady:
		return "not ready"
	case Terminating:
		return "terminating, and others are ready"
	case Stopped:
		return "terminating and not serving"
	case NotLocal:
		return "on another node, and the traffic policy is Local"
	case OtherNode:
		return "topology hints give it to other nodes"
	case OtherZone:
		return "topology hints give it to other zones"
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Explained is a ServicePort and how its pools came to be what they are.
type Explained struct {
	ID      dataplane.PortID
	Service *facts.Service
	Port    facts.ServicePort
	// Built is the ServicePort as it is published; nil: not yet.
	Built     *dataplane.ServicePort
	Endpoints []Judged // all that are known, sorted by address
}

// Judged is an endpoint and why it is or is not in the two sets.
type Judged struct {
	Addr    netip.AddrPort
	Facts   facts.Endpoint
	Cluster Reason // of the traffic policy Cluster
	Local   Reason // of the traffic policy Local
}

// In is the judgement for the set of a traffic policy.
func (j Judged) In(local bool) Reason {
	if local {
		return j.Local
	}
	return j.Cluster
}

// Explain judges all endpoints of a port of a Service in a family. It costs
// what Ports does for that port.
func Explain(svc *facts.Service, port facts.ServicePort, family dataplane.Family, sets []*facts.Slice, env Env) Explained {
	known := new(Room).gather(sets, family).of(port)
	cluster, local := clusterSet(known, env.Zone), localSet(known)
	x := Explained{ID: portID(svc, port, family), Service: svc, Port: port, Endpoints: make([]Judged, len(known))}
	for i, e := range known {
		x.Endpoints[i] = Judged{Addr: e.addr, Facts: *e.Endpoint, Cluster: cluster(e), Local: local(e)}
	}
	return x
}

// LocalOnly tells which set answers at a frontend of a kind, as pools has it:
// true is that of the traffic policy Local, false that of Cluster.
func LocalOnly(svc *facts.Service, kind dataplane.Kind) (outside, inside bool) {
	if kind == dataplane.ClusterIP {
		return svc.InternalLocal, svc.InternalLocal
	}
	return svc.ExternalLocal, false
}

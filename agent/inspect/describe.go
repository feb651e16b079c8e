package inspect

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Who may use an endpoint.
const (
	clusterIPClients = "ClusterIP"
	outsideClients   = "outside" // of NodePorts, load balancer and external addresses
	insideClients    = "inside"  // of the same, on this node
)

// describe tells of a ServicePort and all of its endpoints.
func describe(x policy.Explained) Service {
	s := Service{
		Namespace: x.ID.Namespace, Name: x.ID.Service, Port: x.ID.Port,
		Protocol: x.ID.Protocol.String(), Family: x.ID.Family.String(),
		InternalPolicy: policyName(x.Service.InternalLocal), ExternalPolicy: policyName(x.Service.ExternalLocal),
		AffinitySeconds: int(x.Service.Affinity / time.Second),
		Frontends:       []Frontend{}, Endpoints: make([]Endpoint, len(x.Endpoints)),
	}
	uses := map[string]bool{} // the set of each kind of client: true is Local
	if x.Built != nil {
		for _, f := range x.Built.Frontends {
			s.Frontends = append(s.Frontends, describeFrontend(f))
			outside, inside := policy.LocalOnly(x.Service, f.Kind)
			if f.Kind == dataplane.ClusterIP {
				uses[clusterIPClients] = outside
			} else {
				uses[outsideClients], uses[insideClients] = outside, inside
			}
		}
	}
	for i, e := range x.Endpoints {
		d := describeEndpoint(e)
		for _, who := range []string{clusterIPClients, outsideClients, insideClients} {
			local, is := uses[who]
			switch why := e.In(local); {
			case !is:
			case why == policy.Chosen:
				d.UsedBy = append(d.UsedBy, who)
			default:
				d.LeftOut = append(d.LeftOut, LeftOut{who, why.String()})
			}
		}
		s.Endpoints[i] = d
	}
	return s
}

func policyName(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

func describeFrontend(f dataplane.Frontend) Frontend {
	d := Frontend{Kind: f.Kind.String(), Address: showAddr(f.Addr)}
	for _, p := range f.Sources {
		d.Sources = append(d.Sources, shortPrefix(p))
	}
	return d
}

// showAddr writes a NodePort's address as a star.
func showAddr(a netip.AddrPort) string {
	if !a.Addr().IsUnspecified() {
		return a.String()
	}
	return fmt.Sprintf("*:%d", a.Port())
}

func describeEndpoint(j policy.Judged) Endpoint {
	return Endpoint{
		Address: j.Addr.String(), Node: j.Facts.Place.Node(), Zone: j.Facts.Place.Zone(),
		Local: j.Facts.Local, State: state(j), UsedBy: []string{},
	}
}

func state(j policy.Judged) string {
	switch {
	case j.Facts.Ready:
		return "ready"
	case j.Facts.Terminating && j.Facts.Serving:
		return "terminating"
	case j.Facts.Terminating:
		return "stopped"
	}
	return "not ready"
}

// countInto puts the connections of each endpoint into s.
func (f *flows) countInto(x policy.Explained, s *Service) {
	if x.Built == nil {
		return
	}
	for i, e := range x.Endpoints {
		t := f.total(x.Built, e.Addr)
		s.Endpoints[i].Connections = &t.connections
		if f.bytes {
			s.Endpoints[i].Bytes = &t.bytes
		}
	}
}

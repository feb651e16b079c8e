// Package policy is who may answer whom: the facts of one Service in, its ServicePorts out.
//
// All of it is pure functions of facts and Env. Sections (§) are those of
// kube-proxy's behaviour, KUBE-PROXY §1.
package policy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Env is what policy depends on beside the Service and its endpoints.
type Env struct {
	Families      []dataplane.Family // that this node forwards
	ExternalIPs   bool               // serve spec.externalIPs (§1.8)
	MasqueradeAll bool               // masquerade pods to ClusterIPs too (§1.13)
	Zone          string             // of this node; "": unknown
	NodeIPs       []netip.Addr       // this node's primary address of each family; at most two
	LocalPods     dataplane.LocalPods
}

// Equal reports whether two Envs lead to the same policy.
func (e Env) Equal(f Env) bool {
	return slices.Equal(e.Families, f.Families) && e.ExternalIPs == f.ExternalIPs && e.MasqueradeAll == f.MasqueradeAll &&
		e.Zone == f.Zone && slices.Equal(e.NodeIPs, f.NodeIPs) &&
		e.LocalPods.Detects(dataplane.IPv4) == f.LocalPods.Detects(dataplane.IPv4) &&
		e.LocalPods.Detects(dataplane.IPv6) == f.LocalPods.Detects(dataplane.IPv6)
}

// Ports builds the ServicePorts of a Service, sorted by ID. frontends are those
// of Frontends that the Service may have; a port in a family where it has none
// is left out. sets are the Service's EndpointSlices sorted by name.
func Ports(svc *facts.Service, frontends []Frontend, sets []*facts.Slice, env Env, room *Room) []*dataplane.ServicePort {
	var out []*dataplane.ServicePort
	room.entries = room.entries[:0]
	var of sharedOf
	for _, f := range env.Families {
		of.family(f).health, of.family(f).endpoints = healthCheck(svc, sets, f), room.gather(sets, f)
	}
	for len(frontends) > 0 {
		n := 1
		for n < len(frontends) && frontends[n].port == frontends[0].port && frontends[n].family == frontends[0].family {
			n++
		}
		out = append(out, servicePort(svc, frontends[:n], of.family(frontends[0].family), env))
		frontends = frontends[n:]
	}
	slices.SortFunc(out, func(a, b *dataplane.ServicePort) int { return a.ID.Compare(b.ID) })
	return out
}

// shared is what the ports of a Service have in common in a family.
type shared struct {
	endpoints gathered
	health    *dataplane.HealthCheck
}

// sharedOf is shared by family.
type sharedOf struct{ four, six shared }

func (s *sharedOf) family(f dataplane.Family) *shared {
	if f == dataplane.IPv4 {
		return &s.four
	}
	return &s.six
}

// servicePort builds one port in one family; all of frontends are of it.
func servicePort(svc *facts.Service, frontends []Frontend, of *shared, env Env) *dataplane.ServicePort {
	port, family := svc.Ports[frontends[0].port], frontends[0].family
	known := of.endpoints.of(port)
	sp := &dataplane.ServicePort{
		ID:          portID(svc, port, family),
		Frontends:   make([]dataplane.Frontend, 0, len(frontends)),
		Affinity:    svc.Affinity.Truncate(time.Second),
		Scheduler:   svc.Scheduler,
		HealthCheck: of.health,
		Ending:      ending(known),
	}
	p := pools(svc, known, env.Zone)
	sp.Serving = choose(known, serving, p.cluster.Endpoints)
	sources := sourceRanges(svc, family, env.NodeIPs)
	for _, f := range frontends {
		df := dataplane.Frontend{Kind: f.Kind, Addr: f.Addr}
		if f.Kind == dataplane.ClusterIP {
			df.Pool, df.SNAT = p.internal, internalSNAT(env, family)
		} else {
			df.Pool, df.Inside, df.SNAT = p.external, p.inside, p.externalSNAT
		}
		if f.Kind == dataplane.LoadBalancer {
			df.Sources = sources
		}
		sp.Frontends = append(sp.Frontends, df)
	}
	return sp
}

func portID(svc *facts.Service, port facts.ServicePort, family dataplane.Family) dataplane.PortID {
	return dataplane.PortID{Namespace: svc.Name.Namespace, Service: svc.Name.Name, Port: port.Name, Protocol: port.Protocol, Family: family}
}

// internalSNAT is who is masqueraded on the way to a ClusterIP (§1.13).
func internalSNAT(env Env, family dataplane.Family) dataplane.SNAT {
	switch {
	case env.MasqueradeAll:
		return dataplane.SNATAll
	case env.LocalPods.Detects(family):
		return dataplane.SNATNonPods
	}
	return dataplane.SNATNone // nobody can be told from a pod
}

// healthCheck is what the healthCheckNodePort tells in a family, for all ports
// of a Service (§1.16); nil: it has none.
func healthCheck(svc *facts.Service, sets []*facts.Slice, family dataplane.Family) *dataplane.HealthCheck {
	if svc.HealthCheckPort == 0 {
		return nil
	}
	ready := map[netip.Addr]struct{}{}
	for _, s := range sets {
		if s.Family != family || len(s.Ports) == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Local && e.Ready {
				ready[e.Addr] = struct{}{}
			}
		}
	}
	return &dataplane.HealthCheck{Port: svc.HealthCheckPort, LocalEndpoints: len(ready)}
}

// sourceRanges returns who may use the load balancer addresses of a family,
// sorted and disjoint. Empty means anyone (§1.9).
func sourceRanges(svc *facts.Service, family dataplane.Family, nodeIPs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	node := false // a range has this node's address
	for _, r := range svc.SourceRanges {
		if dataplane.FamilyOf(r.Addr()) != family {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
		node = node || slices.ContainsFunc(nodeIPs, r.Contains)
	}
	if node {
		// Where a load balancer's address is bound to the node, connections
		// that the node opens to it come from that address.
		for _, a := range svc.LoadBalancerIPs {
			if dataplane.FamilyOf(a) == family {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if out = Disjoint(out); len(out) == 1 && out[0].Bits() == 0 { // as halves
		return nil
	}
	return out
}

package inspect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// answer returns what becomes of a client's connections. Each rule adds what it
// says, in the order in which the rules apply; one that sets an outcome is the
// last.
func (i *Inspector) answer(q question, c client) ClientAnswer {
	a := ClientAnswer{Is: c.is(), Because: c.because, Rules: []string{}}
	if c.from.IsValid() {
		a.From = c.from.String()
	}
	for _, apply := range []func(*ClientAnswer, question, client){
		loopbackRule, sourceRule, trafficRule, setRule, emptyRule, affinityRule, i.masqueradeRule, i.socketRule,
	} {
		if apply(&a, q, c); a.Outcome != "" {
			return a
		}
	}
	a.Outcome = Balanced
	return a
}

// rule adds what a rule says.
func (a *ClientAnswer) rule(format string, args ...any) {
	a.Rules = append(a.Rules, fmt.Sprintf(format, args...))
}

// inside reports whether a client has the policies of pods and of the node.
func (c client) inside() bool { return c.pod || c.node }

// pool returns the endpoints that a client is balanced over.
func (q question) pool(c client) *dataplane.Pool {
	if c.inside() && q.frontend.Inside != nil {
		return q.frontend.Inside
	}
	return q.frontend.Pool
}

// localOnly reports whether only endpoints on this node may answer a client.
func (q question) localOnly(c client) bool {
	outside, inside := policy.LocalOnly(q.found.Service, q.frontend.Kind)
	if c.inside() {
		return inside
	}
	return outside
}

func loopbackRule(a *ClientAnswer, q question, c client) {
	if q.frontend.Kind == dataplane.NodePort && q.to.Addr().IsLoopback() && !c.node {
		a.Outcome = Dropped
		a.rule("only the node itself reaches its loopback addresses")
	}
}

func sourceRule(a *ClientAnswer, q question, c client) {
	if len(q.frontend.Sources) == 0 {
		return
	}
	allowed := strings.Join(describeFrontend(q.frontend).Sources, ", ")
	switch {
	case !c.from.IsValid():
		a.rule("loadBalancerSourceRanges: only %s; others are dropped", allowed)
	case !within(c.from, q.frontend.Sources):
		a.Outcome = Dropped
		a.rule("loadBalancerSourceRanges have %s and not this client", allowed)
	default:
		a.rule("loadBalancerSourceRanges let it in: %s", allowed)
	}
}

// trafficRule adds the traffic policy that counts for a client, and which
// endpoints may answer.
func trafficRule(a *ClientAnswer, q question, c client) {
	svc := q.found.Service
	switch {
	case q.frontend.Kind == dataplane.ClusterIP:
		a.rule("internalTrafficPolicy: %s", policyName(svc.InternalLocal))
	case svc.ExternalLocal && c.inside():
		a.rule("externalTrafficPolicy: Local, which lets this node and its pods have the endpoints of all nodes")
	default:
		a.rule("externalTrafficPolicy: %s", policyName(svc.ExternalLocal))
	}
	a.sort(q.found.Endpoints, q.localOnly(c))
}

// sort lists the endpoints that may answer, and those that may not, and why.
func (a *ClientAnswer) sort(all []policy.Judged, local bool) {
	for _, e := range all {
		d := describeEndpoint(e)
		d.UsedBy = nil
		if why := e.In(local); why == policy.Chosen {
			a.Endpoints = append(a.Endpoints, d)
		} else {
			d.LeftOut = []LeftOut{{a.Is, why.String()}}
			a.LeftOut = append(a.LeftOut, d)
		}
	}
}

// setRule adds what else than the traffic policy made the set of endpoints what
// it is.
func setRule(a *ClientAnswer, q question, c client) {
	local := q.localOnly(c)
	has := func(test func(policy.Judged) bool) bool { return slices.ContainsFunc(q.found.Endpoints, test) }
	switch {
	case local:
	case has(func(e policy.Judged) bool { return e.Cluster == policy.OtherNode }):
		a.rule("topology hints: every ready endpoint names nodes, and this node has some")
	case has(func(e policy.Judged) bool { return e.Cluster == policy.OtherZone }):
		a.rule("topology hints: every ready endpoint names zones, and this node's zone has some")
	}
	if has(func(e policy.Judged) bool { return e.In(local) == policy.Chosen && !e.Facts.Ready }) {
		a.rule("none is ready: those that terminate and still serve")
	}
}

func emptyRule(a *ClientAnswer, q question, c client) {
	switch pool := q.pool(c); {
	case len(pool.Endpoints) > 0:
	case pool.IfEmpty == dataplane.Drop:
		a.Outcome = Dropped
		a.rule("there are endpoints, but none on this node")
	default:
		a.Outcome = Rejected
		a.rule("no endpoint anywhere can answer")
	}
}

func affinityRule(a *ClientAnswer, q question, _ client) {
	if affinity := q.found.Service.Affinity; affinity > 0 {
		a.rule("sessionAffinity ClientIP: a client stays with its endpoint for %d s after its last new connection",
			int(affinity.Seconds()))
	}
}

func (i *Inspector) masqueradeRule(a *ClientAnswer, q question, c client) {
	a.Masqueraded, a.MasqueradeRule = i.masquerade(q, c)
}

// socketRule adds where a client's connections are translated, if that may be at
// its socket. Otherwise a client that is an endpoint itself is masqueraded on
// its way to itself.
func (i *Inspector) socketRule(a *ClientAnswer, q question, c client) {
	atSocket, way := i.way(q, c)
	if way != "" {
		a.rule("%s", way)
	}
	for _, e := range q.pool(c).Endpoints {
		if e.Addr.Addr() == c.from && !atSocket {
			a.Itself = e.Addr.String()
		}
	}
}

// masquerade reports whether the endpoint sees the node in place of the client,
// and why.
func (i *Inspector) masquerade(q question, c client) (bool, string) {
	if at, _ := i.way(q, c); at {
		return false, "its connection is translated at the socket, before there is a packet"
	}
	switch q.frontend.SNAT {
	case dataplane.SNATAll:
		if q.frontend.Kind == dataplane.ClusterIP {
			return true, "--masquerade-all"
		}
		return true, "externalTrafficPolicy: Cluster, so that answers come back through this node"
	case dataplane.SNATNonPods:
		if c.pod {
			return false, "it is a pod"
		}
		return true, "it is no pod, and answers must come back through this node"
	case dataplane.SNATNode:
		if c.node && !c.pod {
			return true, "the connection comes from the node itself"
		}
		return false, "externalTrafficPolicy: Local"
	}
	return false, "pods are not told from others, so nobody is masqueraded to a ClusterIP"
}

package conformance

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// KUBE-PROXY §1.12, load balancing; §1.13, hairpin and firewall; §1.17, ports and protocols.

// alarm is how unlikely a spread must be to count as uneven.
const alarm = 1e-5

func balanceCases() []testCase {
	return []testCase{
		{"§1.12", "1,000 connections spread evenly over five endpoints (chi-squared)", spread},
		{"§1.12", "the spread is even again after an endpoint went and came back", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1 a2 b1 b2 b3")}}}}})
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1 b2 b3")}}}}})
			spread(r)
		}},
		{"§1.13", "hairpin: an endpoint reaches itself by every kind of frontend, and sees the node", func(r *run) {
			for _, pods := range []detector{byCIDR, byPrefix, byNothing} {
				r.sync(world{pods: pods, services: []service{
					{name: "alone", frontends: frontendsOf(kinds, frontend{pool: on("a1"), snat: dataplane.SNATNone})},
					{name: "local", frontends: frontendsOf(externalKinds, frontend{pool: own("a1"), snat: dataplane.SNATNode}.or(on("a1")))},
					{name: "sticky", affinity: time.Hour, frontends: []frontend{{kind: clusterIP, pool: on("a1"), snat: dataplane.SNATNone}}},
				}})
				r.check(append(append(toEach(kinds, "alone", from("a1").reaches("a1").seenAs("node-a")), toEach(externalKinds, "local", from("a1").reaches("a1").seenAs("node-a"))...),
					from("a1").to(clusterIP, "sticky").reaches("a1").seenAs("node-a"),
					from("a2").to(clusterIP, "alone").reaches("a1").seenAs("a2"))...)
			}
		}},
		{"§1.13", "hairpin: so does one of which nobody says on which node it is", func(r *run) {
			r.sync(world{services: []service{{name: "alone", frontends: frontendsOf(kinds, frontend{pool: pool{on: "a1", nowhere: true}, snat: dataplane.SNATNone})}}})
			r.check(append(toEach(kinds, "alone", from("a1").reaches("a1").seenAs("node-a")), toEach(kinds, "alone", from("a2").reaches("a1").seenAs("a2"))...)...)
		}},
		{"§1.13", "hairpin goes on being masqueraded as endpoints come and go", func(r *run) {
			for _, endpoints := range []string{"a1", "a2", "a1 a2", "a2"} {
				r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on(endpoints)}}}}})
				// Else a UDP port that is chosen once more follows conntrack to the endpoint of then.
				r.must(r.agentOf("node-a").endFlows())
				r.check(from("a2").to(clusterIP, "web").reaches(endpoints), from("a1").to(clusterIP, "web").reaches(endpoints))
			}
			r.check(from("a2").to(clusterIP, "web").reaches("a2").seenAs("node-a"))
		}},
		{"§1.13", "a host that drops what it forwards lets masqueraded Service traffic and its answers pass", droppingHost},
		{"§1.13", "masqueraded connections keep off the ports that the node itself uses to the same endpoint", ownPorts},
		{"§1.13", "masqueraded connections keep off the numbers of NodePorts", func(r *run) {
			// A socket hook may take an endpoint's answer to such a port of its node
			// for a request to the NodePort.
			r.sync(many(150, "a1"))
			for _, family := range families {
				req := r.request(from("outside").toNodePort("bulk-0", "node-a"), dataplane.UDP, family)
				req.Timeout = answerTime
				if sum, err := r.host("outside").AskMany(req, 3000, 4); err != nil || sum.Failed > 0 {
					r.Errorf("%s: %s, %v", family, sum, err)
				}
			}
		}},
		{"§1.5", "an endpoint on the host network serves pods, nodes and outside", func(r *run) {
			r.sync(world{services: []service{{name: "host", frontends: frontendsOf(kinds, frontend{pool: on("node-a"), snat: dataplane.SNATNonPods})}}})
			var probes []probe
			for _, client := range []string{"a3", "node-a", "outside"} {
				probes = append(probes, toEach(kinds, "host", from(client).reaches("node-a"))...)
			}
			r.check(append(probes, from("a3").to(clusterIP, "host").reaches("node-a").seenAs("a3"), from("b3").to(clusterIP, "host").reaches("node-a").seenAs("b3"))...)
		}},
		{"§1.1", "the ports of a Service, and TCP, UDP and SCTP on one port, are apart", func(r *run) {
			r.sync(world{services: []service{
				{name: "tcp", only: dataplane.TCP, frontends: frontendsOf([]dataplane.Kind{clusterIP, loadBalancer}, frontend{pool: on("a1"), snat: dataplane.SNATAll})},
				{name: "udp", only: dataplane.UDP, addrOf: "tcp", frontends: frontendsOf([]dataplane.Kind{clusterIP, loadBalancer}, frontend{pool: on("a2"), snat: dataplane.SNATAll})},
				{name: "sctp", only: dataplane.SCTP, addrOf: "tcp", frontends: frontendsOf([]dataplane.Kind{clusterIP, loadBalancer}, frontend{pool: on("b1"), snat: dataplane.SNATAll})},
				{name: "other", addrOf: "tcp", port: 443, frontends: frontendsOf([]dataplane.Kind{clusterIP, loadBalancer}, frontend{pool: on("b2"), snat: dataplane.SNATAll})},
			}})
			var probes []probe
			for _, kind := range []dataplane.Kind{clusterIP, loadBalancer} {
				probes = append(probes,
					from("a3").to(kind, "tcp").in(dataplane.TCP).reaches("a1"), from("a3").to(kind, "udp").in(dataplane.UDP).reaches("a2"),
					from("a3").to(kind, "sctp").in(dataplane.SCTP).reaches("b1"), from("a3").to(kind, "other").reaches("b2"),
				)
			}
			r.check(probes...)
		}},
		{"§1.1", "200 Services side by side each reach their own endpoint", func(r *run) {
			var services []service
			owner := map[string]string{}
			for i := range 200 {
				endpoint := []string{"a1", "a2", "b1", "b2"}[i%4]
				s := service{name: fmt.Sprintf("web-%d", i), frontends: []frontend{{kind: clusterIP, pool: on(endpoint)}, {kind: nodePort, pool: on(endpoint), snat: dataplane.SNATAll}}}
				services, owner[s.name] = append(services, s), endpoint
			}
			r.sync(world{services: services})
			var probes []probe
			for name, endpoint := range owner {
				probes = append(probes, from("a3").to(clusterIP, name).reaches(endpoint).once(), from("outside").toNodePort(name, "node-a").reaches(endpoint).once())
			}
			r.check(probes...)
		}},
	}
}

// spread opens 1,000 TCP connections, and 300 of UDP, in each family, and
// tests whether they reached the endpoints evenly.
func spread(r *run) {
	endpoints := []string{"a1", "a2", "b1", "b2", "b3"}
	r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1 a2 b1 b2 b3")}}}}})
	var all sync.WaitGroup
	for protocol, n := range map[dataplane.Protocol]int{dataplane.TCP: 1000, dataplane.UDP: 300} {
		for _, family := range families {
			all.Go(func() {
				req := r.request(from("a4").to(clusterIP, "web"), protocol, family)
				req.Timeout = answerTime
				sum, err := r.host("a4").AskMany(req, n, 8)
				if err != nil || sum.Failed > 0 {
					r.Errorf("%s %s: %s, %v", protocol, family, sum, err)
					return
				}
				if p := chiSquared(sum.ByServer, endpoints, n); p < alarm {
					r.Errorf("%s %s: the spread %v has a probability of %.1e", protocol, family, sum.ByServer, p)
				}
			})
		}
	}
	all.Wait()
}

// chiSquared is the probability of a spread of n at least so uneven, if each of
// five endpoints is as likely as the others: four degrees of freedom, for
// which the distribution has a closed form.
func chiSquared(counts map[string]int, endpoints []string, n int) float64 {
	expected := float64(n) / float64(len(endpoints))
	x := 0.0
	for _, e := range endpoints {
		d := float64(counts[e]) - expected
		x += d * d / expected
	}
	return math.Exp(-x/2) * (1 + x/2)
}

// ownPorts holds connections of node-a itself straight to a pod, while others to
// it are masqueraded.
func ownPorts(r *run) {
	r.sync(world{services: []service{serving("web", "a1")}})
	flows := r.holdForPorts(from("node-a").toAddr("pod a1 itself", r.straight("a1")).in(dataplane.TCP, dataplane.UDP))
	r.masqueradeMany(dataplane.TCP, dataplane.UDP)
	r.stopAll(flows)
}

// holdForPorts holds so many connections that some of masqueradeMany's would
// have their ports.
func (r *run) holdForPorts(p probe) []heldFlow {
	r.Helper()
	const held = 150
	var flows []heldFlow
	for range held {
		flows = append(flows, r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
			req.Timeout = answerTime
			return h.Hold(req, time.Second)
		}, p)...)
	}
	return flows
}

// masqueradeMany has node-a masquerade connections from outside to the Service "web".
func (r *run) masqueradeMany(protocols ...dataplane.Protocol) {
	r.Helper()
	const masqueraded = 2000
	var all sync.WaitGroup
	for _, protocol := range protocols {
		for _, family := range families {
			all.Go(func() {
				req := r.request(from("outside").toNodePort("web", "node-a"), protocol, family)
				req.Timeout = answerTime
				if sum, err := r.host("outside").AskMany(req, masqueraded, 4); err != nil || sum.Failed > 0 {
					r.Errorf("%s %s: %s, %v", protocol, family, sum, err)
				}
			})
		}
	}
	all.Wait()
}

// droppingHost sets node-a's policy for forwarded packets to DROP.
func droppingHost(r *run) {
	if r.col.firewall == nil {
		r.notMeant("the backend leaves the host's firewall to the host, as kube-proxy does outside of its iptables mode")
		return
	}
	r.sync(world{services: []service{serving("web", "a1 b1")}})
	for _, family := range families {
		r.shell(r.node("node-a"), r.col.firewall(family)+" -P FORWARD DROP")
		defer r.shell(r.node("node-a"), r.col.firewall(family)+" -P FORWARD ACCEPT")
	}
	r.check(
		from("outside").toNodePort("web", "node-a").reaches("a1 b1").seenAs("node-a"),
		from("outside").to(loadBalancer, "web").reaches("a1 b1").seenAs("node-a"),
		from("node-a").to(clusterIP, "web").reaches("a1 b1"),
		from("outside").toAddr("pod a1 itself", r.straight("a1")).dropped(),
	)
}

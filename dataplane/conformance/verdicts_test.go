package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// KUBE-PROXY §1.6, §1.7: what becomes of a connection that nobody can take.
// §1.9: who may connect at all.

// kinds are all kinds of frontend, external ones last.
var (
	externalKinds = []dataplane.Kind{externalIP, loadBalancer, nodePort}
	kinds         = append([]dataplane.Kind{clusterIP}, externalKinds...)
)

// toEach is the probe for each of some kinds of a service's frontends;
// NodePorts are those of node-a.
func toEach(kinds []dataplane.Kind, service string, p probe) []probe {
	var all []probe
	for _, kind := range kinds {
		p.service, p.kind, p.node = service, kind, ""
		if kind == nodePort {
			p.node = "node-a"
		}
		all = append(all, p)
	}
	return all
}

// frontendsOf is a frontend of each kind, alike but for that.
func frontendsOf(kinds []dataplane.Kind, like frontend) []frontend {
	var all []frontend
	for _, kind := range kinds {
		like.kind = kind
		all = append(all, like)
	}
	return all
}

func verdictCases() []testCase {
	return []testCase{
		{"§1.6", "without endpoints every frontend rejects at once, from pods, nodes and outside", func(r *run) {
			r.sync(world{services: []service{{name: "empty", frontends: frontendsOf(kinds, frontend{pool: on("")})}}})
			var probes []probe
			for _, client := range []string{"a3", "node-a", "outside"} {
				probes = append(probes, toEach(kinds, "empty", from(client).rejected())...)
			}
			r.check(append(probes, from("b3").to(clusterIP, "empty").rejected(), from("node-b").toNodePort("empty", "node-a").rejected())...)
		}},
		{"§1.6", "with endpoints but none on this node, a ClusterIP of internal policy Local drops", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: own("b1"), snat: dataplane.SNATNonPods}}}}})
			r.check(
				from("a3").to(clusterIP, "web").dropped(), from("node-a").to(clusterIP, "web").dropped(), from("outside").to(clusterIP, "web").dropped(),
				from("b3").to(clusterIP, "web").reaches("b1").seenAs("b3"), from("node-b").to(clusterIP, "web").reaches("b1").seenAs("node-b"),
			)
		}},
		{"§1.6", "with endpoints but none on this node, external policy Local drops from outside and serves node and pods", func(r *run) {
			web := service{name: "web", frontends: frontendsOf(externalKinds, frontend{pool: own("b1"), snat: dataplane.SNATNode}.or(on("b1")))}
			r.sync(world{services: []service{web}, pods: byNodeCIDR})
			var probes []probe
			for _, p := range []probe{
				from("outside").dropped(),
				from("a3").reaches("b1").seenAs("a3"),
				from("node-a").reaches("b1").seenAs("node-a"),
			} {
				probes = append(probes, toEach(externalKinds, "web", p)...)
			}
			r.check(append(probes, from("b3").toNodePort("web", "node-a").dropped(), from("outside").toNodePort("web", "node-b").reaches("b1").seenAs("outside"))...)
			// An answer of b1 would not find its way back: see that it hears nothing.
			r.unheard("b1", toEach(externalKinds, "web", from("outside").dropped())...)
		}},
		{"§1.6", "a frontend rejects only while it has no endpoints", func(r *run) {
			empty := world{services: []service{{name: "web", frontends: frontendsOf(kinds, frontend{pool: on(""), snat: dataplane.SNATAll})}}}
			served := world{services: []service{{name: "web", frontends: frontendsOf(kinds, frontend{pool: on("a1"), snat: dataplane.SNATAll})}}}
			for range 2 {
				r.sync(empty)
				r.check(toEach(kinds, "web", from("outside").rejected())...)
				r.sync(served)
				r.check(toEach(kinds, "web", from("outside").reaches("a1"))...)
			}
		}},
		{"§1.6", "a connection that stands goes on when its Service has no endpoints left", func(r *run) {
			served := world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("b1")}}}}}
			r.sync(served)
			held := r.holdAll(from("a3").to(clusterIP, "web").in(dataplane.TCP))
			served.services[0].frontends[0].pool = on("")
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("")}}}}})
			r.check(from("a3").to(clusterIP, "web").rejected())
			r.stopAll(held)
		}},
		{"§1.7", "an undefined port of a ClusterIP rejects", func(r *run) {
			web := service{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1")}}}
			tcpOnly := service{name: "tcp", only: dataplane.TCP, frontends: []frontend{{kind: clusterIP, pool: on("a1")}}}
			empty := service{name: "empty", frontends: []frontend{{kind: clusterIP, pool: on("")}}}
			r.sync(world{services: []service{web, tcpOnly, empty}})
			var probes []probe
			for _, client := range []string{"a3", "node-a", "outside", "b3"} {
				probes = append(probes,
					from(client).toAddr("another port of web", r.otherPort("web")).rejected(),
					from(client).toAddr("another port of empty", r.otherPort("empty")).rejected(),
					from(client).to(clusterIP, "tcp").in(dataplane.UDP, dataplane.SCTP).rejected(),
				)
			}
			r.check(probes...)
		}},
		{"§1.7", "an address of the ServiceCIDRs that is no ClusterIP drops", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1")}}}}})
			var probes []probe
			for _, client := range []string{"a3", "node-a", "outside", "b3"} {
				probes = append(probes, from(client).toAddr("an unallocated address", r.unallocated).dropped())
			}
			r.check(probes...)
		}},
		{"§1.7", "the ClusterIP of a Service that is gone drops", func(r *run) {
			web := service{name: "web", frontends: []frontend{{kind: clusterIP, pool: on("a1")}}}
			other := service{name: "other", frontends: []frontend{{kind: clusterIP, pool: on("a2")}}}
			r.sync(world{services: []service{other, web}})
			r.check(from("a3").to(clusterIP, "web").reaches("a1"))
			was := func(family dataplane.Family) netip.AddrPort { return r.frontendAddr(web, clusterIP, family) }
			r.sync(world{services: []service{other}})
			r.check(from("a3").toAddr("what was web", was).dropped(), from("a3").to(clusterIP, "other").reaches("a2"))
		}},
	}
}

// unheard is check, and sees to it that nothing reaches a host meanwhile.
func (r *run) unheard(host string, probes ...probe) {
	r.Helper()
	before, err := r.host(host).Heard()
	r.must(err)
	r.check(probes...)
	after, err := r.host(host).Heard()
	r.must(err)
	if after != before {
		r.Errorf("%d of the requests reached %s", after-before, host)
	}
}

// unallocated is a port of an address of the ServiceCIDRs that is no ClusterIP.
func (r *run) unallocated(family dataplane.Family) netip.AddrPort {
	return netip.AddrPortFrom(r.vip(clusterIP, family, r.serviceNumber("nobody")), frontendPort)
}

// otherPort is a port of a service's ClusterIP that it does not define.
func (r *run) otherPort(service string) func(dataplane.Family) netip.AddrPort {
	return func(family dataplane.Family) netip.AddrPort {
		return netip.AddrPortFrom(r.frontendAddr(r.service(service), clusterIP, family).Addr(), 4444)
	}
}

func sourceRangeCases() []testCase {
	ranged := func(sources ...netip.Prefix) []frontend {
		return append(frontendsOf([]dataplane.Kind{clusterIP, externalIP, nodePort}, frontend{pool: on("a1 b1"), snat: dataplane.SNATAll}),
			frontend{kind: loadBalancer, pool: on("a1 b1"), snat: dataplane.SNATAll, sources: sources})
	}
	return []testCase{
		{"§1.9", "source ranges: others are dropped, pods and node too, and only on the load balancer IP", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: ranged(singles(r.host("outside").Addrs...)...)}}})
			var probes []probe
			for _, client := range []string{"outside2", "a3", "node-a"} {
				probes = append(probes, from(client).to(loadBalancer, "web").dropped())
				probes = append(probes, toEach([]dataplane.Kind{clusterIP, externalIP, nodePort}, "web", from(client).reaches("a1 b1"))...)
			}
			r.check(append(probes, from("outside").to(loadBalancer, "web").reaches("a1 b1").seenAs("node-a"))...)
		}},
		{"§1.9", "source ranges: several ranges, those of pods and node among them", func(r *run) {
			sources := append(singles(r.host("outside2").Addrs...), append(netlab.ClusterCIDRs(), eth0(r.node("node-a"))...)...)
			r.sync(world{services: []service{{name: "web", frontends: ranged(sources...)}}})
			r.check(
				from("outside").to(loadBalancer, "web").dropped(), from("outside2").to(loadBalancer, "web").reaches("a1 b1"),
				from("a3").to(loadBalancer, "web").reaches("a1 b1"), from("node-a").to(loadBalancer, "web").reaches("a1 b1"),
			)
		}},
		{"§1.9", "source ranges: without endpoints, clients in range are rejected and others dropped", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: []frontend{{kind: loadBalancer, pool: on(""), snat: dataplane.SNATAll, sources: singles(r.host("outside").Addrs...)}}}}})
			r.check(from("outside").to(loadBalancer, "web").rejected(), from("outside2").to(loadBalancer, "web").dropped())
		}},
		{"§1.9", "source ranges with external policy Local: the source address stays, others are dropped", func(r *run) {
			lb := frontend{kind: loadBalancer, pool: own("a1 b1"), snat: dataplane.SNATNode, sources: singles(r.host("outside").Addrs...)}.or(on("a1 b1"))
			r.sync(world{services: []service{{name: "web", frontends: []frontend{lb}}}})
			r.check(from("outside").to(loadBalancer, "web").reaches("a1").seenAs("outside"), from("outside2").to(loadBalancer, "web").dropped(), from("a3").to(loadBalancer, "web").dropped())
		}},
		{"§1.9", "source ranges that change take effect", func(r *run) {
			r.sync(world{services: []service{{name: "web", frontends: ranged(singles(r.host("outside").Addrs...)...)}}})
			r.sync(world{services: []service{{name: "web", frontends: ranged(singles(r.host("outside2").Addrs...)...)}}})
			r.check(from("outside").to(loadBalancer, "web").dropped(), from("outside2").to(loadBalancer, "web").reaches("a1 b1"))
			r.sync(world{services: []service{{name: "web", frontends: ranged()}}})
			r.check(from("outside").to(loadBalancer, "web").reaches("a1 b1"), from("outside2").to(loadBalancer, "web").reaches("a1 b1"))
		}},
	}
}

// heldFlow is a held connection or a load, and what it is.
type heldFlow struct {
	name string
	load *netlab.Load
}

// holdAll opens a connection for each protocol and family of a probe and asks
// over it again and again.
func (r *run) holdAll(probes ...probe) []heldFlow {
	r.Helper()
	return r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
		req.Timeout = answerTime
		return h.Hold(req, netlab.Patient(50*time.Millisecond))
	}, probes...)
}

// loadAll opens new connections all the time for each protocol and family of a probe.
func (r *run) loadAll(probes ...probe) []heldFlow {
	r.Helper()
	return r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
		req.Timeout = answerTime // a SYN that had to be sent again counts as failed all the same
		return h.Load(req, 1, netlab.Patient(20*time.Millisecond))
	}, probes...)
}

func (r *run) startAll(start func(*netlab.Host, netlab.Request) (*netlab.Load, error), probes ...probe) []heldFlow {
	r.Helper()
	var flows []heldFlow
	for _, p := range probes {
		for _, protocol := range p.protocols {
			for _, family := range p.families {
				name := protocol.String() + " " + family.String() + ": " + p.client + " to " + r.targetText(p)
				load, err := start(r.host(p.client), r.request(p, protocol, family))
				if err != nil {
					r.Fatalf("%s: %v", name, err)
				}
				flows = append(flows, heldFlow{name, load})
			}
		}
	}
	return flows
}

// stopAllMoved waits until each flow has come to a server, and ends them. No
// socket is connected again: whoever sends on need not know of endpoints.
func (r *run) stopAllMoved(flows []heldFlow, server string) {
	r.Helper()
	deadline := time.Now().Add(netlab.Patient(15 * time.Second)) // IPVS drains for two, and a lost datagram is waited for five
	for _, f := range flows {
		for {
			sum, err := f.load.Sum()
			r.must(err)
			if sum.ByServer[server] > 0 {
				break
			}
			if time.Now().After(deadline) {
				r.Errorf("%s: it has not come to %s: %s, answered by %v", f.name, server, sum, sum.ByServer)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		_, err := f.load.Stop()
		r.must(err)
	}
}

// stopAll ends flows and reports those that failed.
func (r *run) stopAll(flows []heldFlow) {
	r.Helper()
	for _, f := range flows {
		sum, err := f.load.Stop()
		r.must(err)
		if sum.Failed == 1 && r.forgives(f.name, sum.First) {
			continue
		}
		if sum.Failed > 0 || sum.Requests == 0 {
			r.Errorf("%s: %s", f.name, sum)
			r.Log(r.tracked(sum.First.Local))
		}
	}
}

// mostStalls is how many TCP connections of a column may be made and then get no
// answer. Two in some hundred thousand did so, with different backends and while
// nothing changed. Nobody knows why yet: whoever sees one finds below the table
// what the hosts knew of it.
const mostStalls = 1

// forgives reports whether a request may fail because its connection was made and
// then got no answer, and notes it.
func (r *run) forgives(what string, a netlab.Answer) bool {
	if a.Outcome != netlab.TimedOut || !strings.Contains(a.Detail, "read tcp") {
		return false
	}
	r.mu.Lock()
	r.stalls++
	most := r.stalls > mostStalls
	r.mu.Unlock()
	text := fmt.Sprintf("%s, %s: %s: %s\n%s", r.col.name, r.Name(), what, a, r.tracked(a.Local))
	if most {
		r.Log(text)
		return false
	}
	results.stall(text)
	return true
}

// tracked returns what the hosts know of a client's connection, by its port.
func (r *run) tracked(client netip.AddrPort) string {
	if !client.IsValid() {
		return ""
	}
	var b strings.Builder
	port := client.Port()
	for _, h := range r.lab.Hosts() {
		err := h.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
			for line := range strings.Lines(string(table)) {
				if strings.Contains(line, fmt.Sprintf("port=%d ", port)) {
					fmt.Fprintf(&b, "  %s tracks %s\n", h.Name, strings.TrimSpace(line))
				}
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not every kernel has the file
			fmt.Fprintf(&b, "  %s: %v\n", h.Name, err)
		}
		sockets, err := h.Run(r.Context(), "ss", "-tanoiH", fmt.Sprintf("sport = :%d or dport = :%d", port, port))
		if err != nil {
			fmt.Fprintf(&b, "  %s: %v\n", h.Name, err)
		} else if sockets != "" {
			fmt.Fprintf(&b, "  %s has the sockets %s\n", h.Name, strings.TrimSpace(sockets))
		}
	}
	return b.String()
}

package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// KUBE-PROXY §1.11: a client stays with its endpoint.

const fourEndpoints = "a1 a2 b1 b2"

// sticky is a Service with affinity and a frontend of each kind.
func sticky(name string, endpoints string, timeout time.Duration) service {
	return service{name: name, affinity: timeout, frontends: frontendsOf(kinds, frontend{pool: on(endpoints), snat: dataplane.SNATAll})}
}

// stickies are many of them, so that "the same by chance" is out of the question.
func stickies(n int, endpoints string, timeout time.Duration) []service {
	var all []service
	for i := range n {
		all = append(all, sticky(fmt.Sprintf("sticky-%d", i), endpoints, timeout))
	}
	return all
}

// flow is one protocol and family of one service.
type flow struct {
	service  string
	protocol dataplane.Protocol
	family   dataplane.Family
}

// whoAnswers asks once for each flow and gives each one's server.
func (r *run) whoAnswers(client string, kind dataplane.Kind) map[flow]string {
	r.Helper()
	return r.whoAnswersFrom(client, kind, nil)
}

func (r *run) whoAnswersFrom(client string, kind dataplane.Kind, source func(dataplane.Family) netip.Addr) map[flow]string {
	r.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	var wrong []string
	servers := map[flow]string{}
	for _, s := range r.world.services {
		for _, protocol := range protocols {
			for _, family := range families {
				all.Go(func() {
					p := from(client).to(kind, s.name)
					p.node, p.source = "node-a", source
					req := r.request(p, protocol, family)
					req.Timeout = answerTime
					a, err := r.host(client).Ask(req)
					mu.Lock()
					defer mu.Unlock()
					if err != nil || a.Outcome != netlab.Answered {
						wrong = append(wrong, fmt.Sprintf("%s %s: %s to %s: %s %v", protocol, family, client, r.targetText(p), a, err))
					}
					servers[flow{s.name, protocol, family}] = a.Server
				})
			}
		}
	}
	all.Wait()
	for _, text := range wrong {
		r.Error(text)
	}
	return servers
}

// same checks that each flow has the server that it had.
func (r *run) same(what string, before, after map[flow]string) {
	r.Helper()
	for f, server := range before {
		if after[f] != server {
			r.Errorf("%s: %s %s %s went to %s, before to %s", what, f.service, f.protocol, f.family, after[f], server)
		}
	}
}

// moved is how many flows have another server.
func moved(before, after map[flow]string) int {
	n := 0
	for f, server := range before {
		if after[f] != server {
			n++
		}
	}
	return n
}

// manyClients has two endpoints share the clients of a whole prefix, which are all
// on one host.
func manyClients(r *run) {
	const clients, atLeast = 300, 101 // more than five standard deviations
	if r.col.mostClients != nil {
		if most, why := r.col.mostClients(); most < clients {
			r.notMeant(why)
			return
		}
	}
	outside, router := r.host("outside"), r.lab.Router()
	r.sh(outside, "sysctl -qw net.ipv6.ip_nonlocal_bind=1")
	r.Cleanup(func() { r.sh(outside, "sysctl -qw net.ipv6.ip_nonlocal_bind=0") })
	first := map[dataplane.Family]netip.Addr{}
	for family, prefix := range map[dataplane.Family]string{dataplane.IPv4: "10.31.0.0/16", dataplane.IPv6: "fd31::/112"} {
		first[family] = netip.MustParsePrefix(prefix).Addr()
		for host, way := range map[*netlab.Host]string{outside: "local " + prefix + " dev lo", router: prefix + " via " + outside.Addr(int(family)).String()} {
			r.ip(host, "route add "+way)
			r.Cleanup(func() { r.ip(host, "route del "+way) })
		}
	}
	r.sync(world{services: []service{{name: "web", only: dataplane.TCP, affinity: time.Hour, frontends: frontendsOf(kinds, frontend{pool: on("a1 b1"), snat: dataplane.SNATAll})}}})
	for _, family := range families {
		before := r.serversOf(clients, first[family], from("outside").to(loadBalancer, "web"), family)
		count := map[string]int{}
		for _, server := range before {
			count[server]++
		}
		if len(count) != 2 || min(count["a1"], count["b1"]) < atLeast {
			r.Errorf("%s: the case is about %d clients for each endpoint; they have %v", family, atLeast, count)
		}
		moved := 0
		for i, server := range r.serversOf(clients, first[family], from("outside").toNodePort("web", "node-a"), family) {
			if server != before[i] {
				moved++
			}
		}
		if moved > 0 {
			r.Errorf("%s: of %d clients of one endpoint or the other (%v) %d went elsewhere", family, clients, count, moved)
		}
	}
}

// serversOf asks once from each of so many addresses, and returns who answered each.
func (r *run) serversOf(clients int, addr netip.Addr, p probe, family dataplane.Family) []string {
	r.Helper()
	servers, wrong := make([]string, clients), make([]string, clients)
	slots := make(chan struct{}, atATime)
	var all sync.WaitGroup
	for i := range clients {
		addr = addr.Next()
		req := r.request(p, dataplane.TCP, family)
		req.Timeout, req.From = answerTime, netip.AddrPortFrom(addr, 0)
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			a, err := r.host(p.client).Ask(req)
			if err != nil || a.Outcome != netlab.Answered {
				wrong[i] = fmt.Sprintf("%s to %s: %s %v", req.From, r.targetText(p), a, err)
			}
			servers[i] = a.Server
		})
	}
	all.Wait()
	for _, text := range slices.DeleteFunc(wrong, func(s string) bool { return s == "" }) {
		r.Error(text)
	}
	return servers
}

func affinityCases() []testCase {
	return []testCase{
		{"§1.11", "a client stays with its endpoint", func(r *run) {
			r.sync(world{services: stickies(3, fourEndpoints, time.Hour)})
			for _, client := range []string{"a3", "node-a", "outside"} {
				first := r.whoAnswers(client, clusterIP)
				for range 4 {
					r.same(client, first, r.whoAnswers(client, clusterIP))
				}
			}
		}},
		{"§1.11", "each of more than 100 clients of one endpoint stays with it", manyClients},
		{"§1.11", "each client has an endpoint of its own choice", func(r *run) {
			r.sync(world{services: stickies(4, fourEndpoints, time.Hour)})
			// 24 flows each: all the same for both clients has a chance of 4^-24.
			one, two := r.whoAnswers("a3", clusterIP), r.whoAnswers("a4", clusterIP)
			if moved(one, two) == 0 {
				r.Error("two clients have the same endpoint in all flows")
			}
			r.same("a3", one, r.whoAnswers("a3", clusterIP))
			r.same("a4", two, r.whoAnswers("a4", clusterIP))
		}},
		{"§1.11", "affinity holds across all frontends of a Service port", func(r *run) {
			r.sync(world{services: stickies(3, fourEndpoints, time.Hour)})
			first := r.whoAnswers("outside", clusterIP)
			for _, kind := range externalKinds {
				r.same("outside by "+kind.String(), first, r.whoAnswers("outside", kind))
			}
		}},
		{"§1.11", "affinity ends after its timeout without a new connection", func(r *run) {
			// 24 flows: that none moves by chance has a probability of 4^-24.
			r.sync(world{services: stickies(4, fourEndpoints, netlab.Patient(time.Second))})
			first := r.whoAnswers("a3", clusterIP)
			time.Sleep(netlab.Patient(2200 * time.Millisecond))
			if moved(first, r.whoAnswers("a3", clusterIP)) == 0 {
				r.Error("all 24 flows still go to the same endpoint")
			}
		}},
		{"§1.11", "each new connection extends affinity", func(r *run) {
			r.sync(world{services: stickies(4, fourEndpoints, netlab.Patient(3*time.Second))})
			first := r.whoAnswers("a3", clusterIP)
			for range 5 {
				time.Sleep(netlab.Patient(900 * time.Millisecond))
				r.same("after less than the timeout", first, r.whoAnswers("a3", clusterIP))
			}
		}},
		{"§1.11", "a client whose endpoint goes gets another and stays with that", func(r *run) {
			r.sync(world{services: stickies(2, "a1 b1", time.Hour)})
			first := r.whoAnswers("a3", clusterIP)
			r.sync(world{services: stickies(2, "b1 b2", time.Hour)})
			second := r.whoAnswers("a3", clusterIP)
			for f, server := range second {
				if server == "a1" || first[f] == "b1" && server != "b1" {
					r.Errorf("%s %s %s went to %s, before to %s; a1 is gone and b1 is not", f.service, f.protocol, f.family, server, first[f])
				}
			}
			for range 3 {
				r.same("after the change", second, r.whoAnswers("a3", clusterIP))
			}
		}},
		{"§1.11", "affinity outlives Syncs that do not touch the endpoint, and a restart", func(r *run) {
			services := stickies(2, fourEndpoints, time.Hour)
			r.sync(world{services: services})
			first := r.whoAnswers("a3", clusterIP)
			r.sync(world{services: append(services, sticky("another", "a1", 0))})
			r.same("after another Service came", first, r.whoAnswers("a3", clusterIP))
			r.sync(world{services: stickies(2, fourEndpoints+" b3", time.Hour)})
			r.same("after an endpoint came", first, r.whoAnswers("a3", clusterIP))
			r.restart("node-a")
			r.syncUnknown(world{services: stickies(2, fourEndpoints+" b3", time.Hour)})
			r.same("after a restart", first, r.whoAnswers("a3", clusterIP))
		}},
		{"§1.11", "affinity with external policy Local keeps to the node's endpoints", func(r *run) {
			s := service{name: "web", affinity: time.Hour, frontends: frontendsOf(externalKinds, frontend{pool: own(fourEndpoints), snat: dataplane.SNATNode}.or(on(fourEndpoints)))}
			r.sync(world{services: []service{s}})
			first := r.whoAnswers("outside", loadBalancer)
			for f, server := range first {
				if server != "a1" && server != "a2" {
					r.Errorf("%s %s went to %s, which is not on the node", f.protocol, f.family, server)
				}
			}
			for range 3 {
				r.same("outside", first, r.whoAnswers("outside", loadBalancer))
				r.same("outside by NodePort", first, r.whoAnswers("outside", nodePort))
			}
		}},
	}
}

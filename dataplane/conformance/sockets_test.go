package conformance

import (
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// What programs see of their own sockets, which is what they would see on any
// network; and pods that translate packets themselves.

func socketCases() []testCase {
	return []testCase{
		{"socket", "connect() of a UDP socket succeeds where nobody serves, and what it sends is refused", func(r *run) {
			r.sync(wideWorld())
			for _, client := range []string{"a3", "node-a"} {
				for _, p := range append(toEach(kinds[:3], "empty", from(client)), from(client).toAddr("a port that here does not define", r.otherPort("here"))) {
					for _, family := range families {
						r.connectsThenRefused(p, family)
					}
				}
			}
		}},
		{"socket", "a connected UDP socket whose endpoint is replaced goes on to the next one", func(r *run) {
			w := func(endpoint string) world {
				return world{services: []service{{name: "web", frontends: frontendsOf(kinds, frontend{pool: on(endpoint), snat: dataplane.SNATAll})}}}
			}
			r.sync(w("b1"))
			var flows []heldFlow
			for _, client := range []string{"a3", "node-a", "outside"} {
				flows = append(flows, r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
					req.Timeout = dropTime // what is on its way while the flow ends may be lost
					return h.Hold(req, netlab.Patient(50*time.Millisecond))
				}, toEach(kinds, "web", from(client).in(dataplane.UDP))...)...)
			}
			r.sync(w("a1"))
			for _, a := range r.agents {
				r.must(a.endFlows())
			}
			r.stopAllAt(flows, "a1")
		}},
		{"socket", "a client that connects to 0.0.0.0 or :: reaches itself, on a NodePort's number too", connectsToItself},
		{"neighbour", "what a pod forwards from one Service to another one is balanced again", forwardingPod},
		{"neighbour", "a pod that starts while no agent runs reaches Services", podWithoutAgent},
		{"neighbour", "after nft flush ruleset a Sync brings everything back", flushedRules},
	}
}

// connectsThenRefused checks that a UDP socket gets its local address, and its
// error only by what it sends (envoyproxy/envoy#9898).
func (r *run) connectsThenRefused(p probe, family dataplane.Family) {
	r.Helper()
	req := r.request(p, dataplane.UDP, family)
	req.Timeout = answerTime
	a, err := r.host(p.client).Ask(req)
	r.must(err)
	if a.Outcome != netlab.Refused || !a.Local.IsValid() {
		r.Errorf("%s: %s to %s (%s): connect() should succeed (its own address: %s), and its packets be refused; %s", family, p.client, r.targetText(p), req.To, a.Local, a)
	}
}

// stopAllAt ends flows and checks that the last answers of each came from a server.
func (r *run) stopAllAt(flows []heldFlow, server string) {
	r.Helper()
	deadline := time.Now().Add(netlab.Patient(15 * time.Second))
	for _, f := range flows {
		sum, err := f.load.Sum()
		for err == nil && sum.ByServer[server] == 0 && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
			sum, err = f.load.Sum()
		}
		r.must(err)
		if sum.ByServer[server] == 0 {
			r.Errorf("%s: it has not come to %s: %s, answered by %v", f.name, server, sum, sum.ByServer)
		}
		_, err = f.load.Stop()
		r.must(err)
	}
}

// connectsToItself has a pod and the node serve on a NodePort's number, at all
// of their own addresses.
func connectsToItself(r *run) {
	r.sync(pathServices())
	both := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
	port := r.frontendAddr(r.service("there"), nodePort, dataplane.IPv4).Port()
	itself := func(family dataplane.Family) netip.AddrPort { return netip.AddrPortFrom(family.Unspecified(), port) }
	var probes []probe
	for _, client := range []string{"a3", "node-a"} {
		for _, protocol := range both {
			// This takes IPv4 too.
			server, err := r.host(client).Serve(wireName(protocol), port, netip.IPv6Unspecified())
			r.must(err)
			defer func() { _ = server.Stop() }()
		}
		probes = append(probes, from(client).in(both...).toAddr("its own NodePort number at the unspecified address", itself).reaches(client))
	}
	r.check(probes...)
}

// forwardingPod has a pod translate what comes to it to another Service's
// ClusterIP, as klipper-lb does (k3s-io/klipper-lb#54).
func forwardingPod(r *run) {
	w := pathServices()
	w.services = append(w.services, service{name: "gateway", frontends: frontendsOf(kinds, frontend{pool: on("a2"), snat: dataplane.SNATAll})})
	r.sync(w)
	pod := r.host("a2")
	r.sh(pod, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	r.Cleanup(func() { r.sh(pod, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0") })
	for f, family := range []string{"ip", "ip6"} {
		r.nft(pod, family, "chain pre { type nat hook prerouting priority -100; meta l4proto { tcp, udp, sctp } th dport 8080 dnat to "+
			r.frontendAddr(r.service("there"), clusterIP, families[f]).String()+"; }\nchain post { type nat hook postrouting priority 100; masquerade; }")
	}
	r.check(slices.Concat(toEach(kinds, "gateway", from("outside").reaches("b1")), toEach(kinds, "gateway", from("a3").reaches("b1")),
		[]probe{from("outside").toAddr("the pod itself", r.straight("a2")).reaches("b1")})...)
}

// podWithoutAgent connects a pod of each node again after the agents were killed
// (projectcalico/calico#9204).
func podWithoutAgent(r *run) {
	r.sync(wideWorld())
	for _, n := range r.lab.Nodes {
		r.kill(n.Name)
		r.must(r.lab.Reconnect(n.Pods[3]))
	}
	var probes []probe
	for _, client := range []string{"a4", "b4"} {
		probes = append(probes, toEach(kinds, "here", from(client).reaches("a1"))...)
		probes = append(probes, toEach(kinds, "there", from(client).reaches("b1"))...)
		probes = append(probes, from(client).to(clusterIP, "empty").rejected())
	}
	for _, p := range once(probes) {
		p.source = func(family dataplane.Family) netip.Addr { return r.host(p.client).Addr(int(family)) }
		probes = append(probes, p)
	}
	r.check(probes...)
	for _, n := range r.lab.Nodes {
		r.restart(n.Name)
	}
	r.syncUnknown(r.world)
	r.check(probes...)
}

// flushedRules has another program remove all rules of nftables while
// connections begin. Observe notices, if those were ours.
func flushedRules(r *run) {
	r.sync(wideWorld())
	a := r.node("node-a")
	loads := r.loadAll(from("outside").toNodePort("there", "node-a").in(dataplane.TCP), from("a3").to(clusterIP, "here").in(dataplane.TCP))
	before := r.col.state(r, a)
	r.shell(a, "nft flush ruleset")
	if !slices.Equal(before, r.col.state(r, a)) {
		held, err := r.agentOf("node-a").observe()
		if err == nil && len(held.Differences(dataplane.Expect(r.world.snapshot(r, a)))) == 0 {
			r.Error("Observe is as if nothing had happened")
		}
	}
	r.syncUnknown(r.world)
	r.check(wide()...)
	for _, f := range loads { // some of theirs met no rules
		_, err := f.load.Stop()
		r.must(err)
	}
}

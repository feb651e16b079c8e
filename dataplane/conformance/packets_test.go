package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/netlab"
)

// What becomes of packets of all sizes and kinds on the way: path MTU, fragments,
// checksums, connections that only their frontend tells apart.

// transferred is how much a transfer is, and transferTime how long it may take
// where it need not wait for a lost packet again and again.
const (
	transferred  = 1 << 20
	transferTime = 8 * time.Second
)

func packetCases() []testCase {
	return []testCase{
		{"clause 5", "path MTU: the sender learns it where a client's packets are too large for the endpoint's link", narrowEndpoint},
		{"clause 5", "path MTU: the sender learns it where answers are too large for the client's link", narrowClient},
		{"clause 5", "path MTU: the node itself learns it where its packets are too large for the endpoint's device", narrowDevice},
		{"clause 5", "fragments: a datagram of 4,000 bytes gets an answer as large", fragments},
	}
}

// pathServices are a Service with an endpoint on node-a, and one with an
// endpoint on node-b, each masqueraded ("here", "there") and with the source
// kept ("kept").
func pathServices() world {
	cluster := func(name, endpoint string) service {
		s := service{name: name, frontends: frontendsOf(externalKinds, frontend{pool: on(endpoint), snat: dataplane.SNATAll})}
		s.frontends = append(s.frontends, frontend{kind: clusterIP, pool: on(endpoint), snat: dataplane.SNATNonPods})
		return s
	}
	kept := service{name: "kept", frontends: frontendsOf(externalKinds, frontend{pool: own("a1"), snat: dataplane.SNATNode}.or(on("a1")))}
	return world{services: []service{cluster("here", "a1"), cluster("there", "b1"), kept}}
}

// pathsFromOutside are the ways of an outside client to those Services.
func pathsFromOutside() []probe {
	return slices.Concat(
		toEach(kinds, "here", from("outside").reaches("a1")), toEach(kinds, "there", from("outside").reaches("b1")),
		toEach([]dataplane.Kind{loadBalancer, nodePort}, "kept", from("outside").reaches("a1").seenAs("outside")),
	)
}

// narrowMTU is the MTU of narrow ways; IPv6 demands 1,280.
const narrowMTU = 1300

// narrow makes the way from a host to another's addresses too narrow for full
// packets for the rest of the case; how is the rest of the route, for each
// address. What hosts know of paths is forgotten.
func (r *run) narrow(on *netlab.Host, to string, how func(netip.Addr) string) {
	r.Helper()
	replace := func(a netip.Addr, more string) {
		r.ip(on, fmt.Sprintf("route replace %s %s%s", a, how(a), more))
	}
	for _, a := range r.host(to).Addrs {
		replace(a, fmt.Sprintf(" mtu %d", narrowMTU))
		r.Cleanup(func() { replace(a, "") })
	}
	for _, h := range r.lab.Hosts() {
		r.ip(h, "-4 route flush cache")
		r.ip(h, "-6 route flush cache")
	}
}

// ip runs ip(8) on a host.
func (r *run) ip(h *netlab.Host, args string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	out, err := h.Run(ctx, "ip", strings.Fields(args)...)
	r.must(err)
	return out
}

// narrowToPod makes the way from a node to one of its pods narrow.
func (r *run) narrowToPod(node, pod string) {
	r.Helper()
	n := r.node(node)
	r.narrow(n.Host, pod, func(a netip.Addr) string {
		return "dev " + netlab.PodInterfacePrefix + pod[1:] + " src " + n.Addr(int(dataplane.FamilyOf(a))).String()
	})
}

// narrowFromRouter makes the way from the router to what it is linked to narrow.
func (r *run) narrowFromRouter(to string) {
	r.Helper()
	r.narrow(r.lab.Router(), to, func(netip.Addr) string { return "dev " + to })
}

// direction is who sends much: the client or the endpoint.
type direction string

const (
	toEndpoint direction = "to the endpoint"
	toClient   direction = "to the client"
)

// learns checks that much data passes in one direction although it begins with
// packets that are too large, over TCP and UDP.
func (r *run) learns(d direction, probes ...probe) {
	r.Helper()
	var all sync.WaitGroup
	slots := make(chan struct{}, atATime/4)
	for _, p := range probes {
		for _, family := range p.families {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				r.transfer(d, p, family)
				r.largeDatagram(p, family)
			})
		}
	}
	all.Wait()
}

// transfer sends much over one TCP connection.
func (r *run) transfer(d direction, p probe, family dataplane.Family) {
	r.Helper()
	req := r.request(p, dataplane.TCP, family)
	req.Timeout = transferTime
	send := r.host(p.client).Push
	if d == toClient {
		send = r.host(p.client).Fetch
	}
	a, err := send(req, transferred)
	r.must(err)
	if text := r.judge(p, dataplane.TCP, family, a); text != "" {
		r.Errorf("%s: %d bytes %s from %s by %s (%s): %s; %s", family, transferred, d, p.client, r.targetText(p), req.To, text, a)
	}
}

// largeDatagram asks with a datagram that a narrow way does not take, more than
// once: the first may be what the path is learned by. Sockets of the node itself
// never learn it over IPv6 where netfilter translates them, as with kube-proxy.
func (r *run) largeDatagram(p probe, family dataplane.Family) {
	r.Helper()
	const tries = 6
	if strings.HasPrefix(p.client, "node-") && family == dataplane.IPv6 {
		return
	}
	req := r.request(p, dataplane.UDP, family)
	req.Size, req.Timeout = 1400, dropTime
	var a netlab.Answer
	for range tries {
		var err error
		a, err = r.host(p.client).Ask(req)
		r.must(err)
		if a.Outcome == netlab.Answered {
			break
		}
	}
	if text := r.judge(p, dataplane.UDP, family, a); text != "" {
		r.Errorf("%s: datagrams of %d bytes from %s to %s (%s): %s; %s", family, req.Size, p.client, r.targetText(p), req.To, text, a)
	}
}

func narrowEndpoint(r *run) {
	r.sync(pathServices())
	r.narrowToPod("node-a", "a1")
	r.narrowToPod("node-b", "b1")
	r.learns(toEndpoint, append(pathsFromOutside(),
		from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(clusterIP, "there").reaches("b1"),
		from("node-a").to(clusterIP, "there").reaches("b1"), from("node-a").toNodePort("there", "node-a").reaches("b1"),
	)...)
}

func narrowClient(r *run) {
	r.sync(pathServices())
	r.narrowFromRouter("outside")
	r.learns(toClient, pathsFromOutside()...)
	r.narrowToPod("node-a", "a3")
	r.narrowFromRouter("node-a")
	r.learns(toClient,
		from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(clusterIP, "there").reaches("b1"),
		from("a3").to(loadBalancer, "there").reaches("b1"), from("node-a").to(clusterIP, "there").reaches("b1"),
	)
	r.narrow(r.node("node-a").Host, "outside", func(a netip.Addr) string {
		return "via " + strings.TrimSuffix(r.node("node-a").Addr(int(dataplane.FamilyOf(a))).String(), "2") + "1"
	})
	r.learns(toClient, pathsFromOutside()...)
}

// narrowDevice makes the node's end of a pod's device itself narrow, so that
// larger packets cannot leave by it.
func narrowDevice(r *run) {
	r.sync(pathServices())
	ends := map[*netlab.Host]string{r.node("node-a").Host: netlab.PodInterfacePrefix + "1", r.host("a1"): "eth0"}
	for h, device := range ends {
		r.must(h.SetMTU(device, narrowMTU))
		r.Cleanup(func() { r.must(h.SetMTU(device, 1500)) })
	}
	r.learns(toEndpoint, toEach(kinds, "here", from("node-a").reaches("a1"))...)
}

func fragments(r *run) {
	r.sync(pathServices())
	large := func(p probe, family dataplane.Family) {
		req := r.request(p, dataplane.UDP, family)
		req.Size, req.Timeout = 4000, answerTime
		a, err := r.host(p.client).Ask(req)
		r.must(err)
		if text := r.judge(p, dataplane.UDP, family, a); text != "" {
			r.Errorf("%s: %s to %s (%s): %s; %s", family, p.client, r.targetText(p), req.To, text, a)
		}
	}
	for _, p := range append(pathsFromOutside(),
		from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(clusterIP, "there").reaches("b1"), from("a3").to(loadBalancer, "there").reaches("b1"),
		from("a1").to(clusterIP, "here").reaches("a1"),
		from("node-a").to(clusterIP, "here").reaches("a1"), from("node-a").to(clusterIP, "there").reaches("b1"),
	) {
		for _, family := range p.families {
			large(p, family)
		}
	}
}

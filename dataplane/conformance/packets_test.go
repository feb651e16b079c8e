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
	"github.com/switchyard-io/switchyard/lab/netlab"
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
		{"clause 5", "checksums: data passes both ways whatever devices compute, check and join", offloads},
		{"§1.12", "two Services on one endpoint, used from one client port at the same time, do not mix", sharedPort},
		{"§1.5", "a node whose address is on a bridge above its link serves all the same", bridged},
		{"clause 5", "connections that iptables translated go on when this backend takes over; those made since live on without iptables", takeover},
		{"clause 5", "connections that iptables masqueraded go on beside many that this backend masquerades", takeoverPorts},
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
		if r.col.ownsConnections() && strings.HasPrefix(p.client, "node-") && family == dataplane.IPv6 {
			return // IPVS refuses what the node itself would have cut into fragments only later, as in kube-proxy's mode
		}
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

// offloads has devices leave to the kernel what they do by default: to fill in
// checksums, to check them, and to cut and join segments.
func offloads(r *run) {
	r.sync(pathServices())
	all := "rx off tx off tso off gso off gro off"
	for _, off := range []struct{ hosts, features string }{
		{"outside a3", all}, // what comes has all its checksums
		{"a1 b1", all},      // so have answers
		{"node-a node-b router", all},
		{"outside a3 a1 b1 node-a node-b router", all},
		{"outside a3 a1 b1", "gso off tso off gro off"}, // packets without checksums, one by one
	} {
		hosts := strings.Fields(off.hosts)
		for _, h := range hosts {
			r.ethtool(h, off.features)
		}
		for _, p := range []probe{
			from("outside").toNodePort("here", "node-a").reaches("a1"), from("outside").toNodePort("there", "node-a").reaches("b1"),
			from("outside").to(loadBalancer, "kept").reaches("a1"),
			from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(clusterIP, "there").reaches("b1"), from("node-a").to(clusterIP, "there").reaches("b1"),
		} {
			for _, family := range p.families {
				r.transfer(toEndpoint, p, family)
				r.transfer(toClient, p, family)
			}
			r.check(p.in(dataplane.UDP, dataplane.SCTP))
		}
		for _, h := range hosts {
			r.ethtool(h, strings.ReplaceAll(off.features, "off", "on"))
		}
		if r.Failed() {
			r.Fatalf("with %s of %s", off.features, off.hosts)
		}
	}
}

// ethtool sets features of the devices that lead from a host to another one.
func (r *run) ethtool(host, features string) {
	r.Helper()
	h := r.lab.Router()
	if host != "router" {
		h = r.host(host)
	}
	out := r.ip(h, "-o link show type veth")
	for line := range strings.Lines(out) {
		device, _, _ := strings.Cut(strings.Fields(line)[1], "@")
		ctx, cancel := context.WithTimeout(context.Background(), answerTime)
		_, err := h.Run(ctx, "ethtool", append([]string{"-K", strings.TrimSuffix(device, ":")}, strings.Fields(features)...)...)
		cancel()
		r.must(err)
	}
}

// sharedPort holds a connection to each of two Services from one port of a client.
func sharedPort(r *run) {
	if r.col.ownsConnections() {
		r.notMeant("it has connections of its own and knows answers by client and endpoint, so that two connections from one client port to one endpoint mix, as in kube-proxy's mode")
		return
	}
	var services []service
	for _, endpoint := range []string{"a1", "b1"} {
		for _, n := range []string{"one", "two"} {
			services = append(services, service{name: n + "-" + endpoint, frontends: slices.Concat(
				frontendsOf(externalKinds, frontend{pool: on(endpoint), snat: dataplane.SNATAll}),
				frontendsOf([]dataplane.Kind{clusterIP}, frontend{pool: on(endpoint), snat: dataplane.SNATNonPods}))})
		}
	}
	for _, n := range []string{"one", "two"} {
		services = append(services, service{name: n + "-kept", frontends: frontendsOf(externalKinds, frontend{pool: own("a1"), snat: dataplane.SNATNode}.or(on("a1")))})
	}
	r.sync(world{services: services})
	port := uint16(25000)
	var flows []heldFlow
	for _, where := range []string{"a1", "b1", "kept"} {
		clients := []probe{from("outside"), from("a3"), from("node-a")}
		held := kinds
		if where == "kept" {
			clients, held = clients[:1], externalKinds
		}
		for _, client := range clients {
			for _, kind := range held {
				port++
				for _, n := range []string{"one-", "two-"} {
					flows = append(flows, r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
						req.Timeout, req.Shared, req.From = answerTime, true, netip.AddrPortFrom(req.From.Addr(), port)
						return h.Hold(req, 20*time.Millisecond)
					}, toEach([]dataplane.Kind{kind}, n+where, client.in(dataplane.TCP, dataplane.UDP))...)...)
				}
			}
		}
	}
	time.Sleep(300 * time.Millisecond)
	r.stopAll(flows)
}

// takeover has a node's connections begin under the iptables backend.
func takeover(r *run) {
	w := world{services: []service{serving("web", "b1"), serving("here", "a1")}}
	before, ok := r.begunWith(predecessorColumn, w)
	if !ok {
		return
	}
	old := r.holdEverywhere()
	r.syncUnknown(w)
	time.Sleep(200 * time.Millisecond)
	r.stopAll(old) // netfilter translates them, as long as it has a rule for NAT
	// What the node itself opens comes by netfilter's rules first, as long as there are any.
	both := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
	held := r.holdAll(from("a3").to(clusterIP, "web").in(both...), from("outside").to(loadBalancer, "web").in(both...), from("outside").toNodePort("web", "node-a").in(both...))
	before.end()
	r.check(works("web", "b1")...)
	time.Sleep(200 * time.Millisecond)
	r.stopAll(held)
}

// takeoverPorts has masqueraded connections of the iptables backend live on
// while this one gives others random ports.
func takeoverPorts(r *run) {
	w := world{services: []service{serving("web", "b1")}}
	before, ok := r.begunWith(predecessorColumn, w)
	if !ok {
		return
	}
	held := r.holdForPorts(from("outside").toNodePort("web", "node-a").in(dataplane.TCP))
	r.syncUnknown(w)
	r.masqueradeMany(dataplane.TCP)
	r.stopAll(held)
	before.end()
}

// predecessor are the agents of another backend on all nodes.
type predecessor struct {
	run    *run
	agents []*agent
}

// begunWith makes another backend serve a world, on nodes that nobody served. If it is
// the run's own, that is not meant.
func (r *run) begunWith(name string, w world) (p predecessor, ok bool) {
	r.Helper()
	col, err := columnNamed(name)
	r.must(err)
	if r.col.backend == col.backend {
		r.notMeant("it is what the others take over from")
		return p, false
	}
	p = predecessor{r, make([]*agent, len(r.lab.Nodes))}
	r.cleared()
	r.world = w
	r.must(r.onEach(func(i int, n *netlab.Node) (err error) {
		if p.agents[i], err = startAgent(n, col, r.site(n), r.env(n)); err != nil {
			return err
		}
		return p.agents[i].sync(true, w.snapshot(r, n))
	}))
	return p, true
}

// end removes all that is of the predecessor.
func (p predecessor) end() {
	p.run.Helper()
	for _, a := range p.agents {
		if a.col.name != p.run.col.base { // else it is what sockets are on top of
			p.run.must(a.cleanup())
		}
		a.process.Stop(time.Second)
	}
}

// bridgeUplink puts a bridge above node-a's eth0 and moves the node's addresses
// there until the case ends.
func (r *run) bridgeUplink() {
	r.Helper()
	n := r.node("node-a")
	gateway := func(a netip.Addr) string { return strings.TrimSuffix(a.String(), "2") + "1" }
	move := func(from, to string) {
		for _, a := range n.Addrs {
			p := netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[a.Is4()])
			r.must(n.AddAddress(to, p)) // before the other goes, which routes would go with
			r.must(n.RemoveAddress(from, p))
			r.ip(n.Host, fmt.Sprintf("route replace default via %s dev %s", gateway(a), to))
		}
	}
	// Netfilter must not take packets to the node for bridged ones: where they go
	// out by the port that they came in by, a bridge drops those.
	r.shell(n, "for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $f ] || echo 0 >$f; done")
	r.ip(n.Host, "link add br0 type bridge")
	r.ip(n.Host, "link set eth0 master br0")
	r.ip(n.Host, "link set br0 up")
	r.Cleanup(func() {
		r.ip(n.Host, "link set eth0 nomaster")
		move("br0", "eth0")
		r.ip(n.Host, "link del br0")
	})
	move("eth0", "br0")
	time.Sleep(200 * time.Millisecond) // an agent learns of a device a moment after it is there
}

func bridged(r *run) {
	r.bridgeUplink()
	r.sync(pathServices())
	r.check(append(pathsFromOutside(),
		from("a3").to(clusterIP, "there").reaches("b1").seenAs("a3"), from("a1").to(clusterIP, "here").reaches("a1").seenAs("node-a"),
		from("node-a").to(clusterIP, "there").reaches("b1").seenAs("node-a"), from("node-b").toNodePort("there", "node-a").reaches("b1"),
	)...)
	r.check(from("a3").toAddr("pod b1 itself", r.straight("b1")).reaches("b1").seenAs("a3"))
}

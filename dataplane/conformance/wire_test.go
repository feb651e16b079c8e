package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// What becomes of packets that no honest kernel sends, or that are not meant
// for the node or the Service that they look like.

func wireCases() []testCase {
	return []testCase{
		{"wire", "a datagram's fragments are joined in whatever order they come", fragmentOrders},
		{"wire", "RST, FIN and SYN segments that are not of the connection's window do not end it, whoever sends them", spoofedSegments},
		{"wire", "a SYN that is not of the connection's window does not move a connection whose endpoint left the Service", spoofedDrain},
		{"wire", "thousands of unfinished handshakes keep nobody else out", unfinished},
		{"wire", "answers reach a socket whose port has a NodePort's number, and a flow that the node's NAT gave such a port", nodePortNumbers},
		{"wire", "a socket on an external IP of the node gets its answers", externalNumbers},
		{"wire", "packets to IPv4-mapped addresses are no IPv4 connection", mappedAddresses},
		{"wire", "a frame whose IP address is 0.0.0.0 or :: is for no NodePort", zeroAddresses},
		{"wire", "a frame for another hardware address is neither served nor answered", otherHardware},
		{"wire", "a connection to a load balancer IP that moves to another node is reset at once", movedAddress},
		{"wire", "a TCP connection whose first packets were dropped before its Service served anybody is served then", begunBefore},
		{"wire", "a macvlan pod reaches a load balancer IP that another node announces by that node", macvlanPod},
	}
}

// packet returns a packet of one of these hosts' addresses to a frontend.
func (r *run) packet(p probe, protocol dataplane.Protocol, family dataplane.Family, port uint16) netlab.Packet {
	return netlab.Packet{
		Protocol: wireName(protocol), From: netip.AddrPortFrom(r.host(p.client).Addr(int(family)), port), To: r.request(p, protocol, family).To,
	}
}

// fragmentOrders sends a datagram in three pieces in each order (cilium/cilium#25709).
func fragmentOrders(r *run) {
	r.sync(pathServices())
	port := uint16(26000)
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		var all sync.WaitGroup
		for _, p := range append(pathsFromOutside(), from("a3").to(clusterIP, "here").reaches("a1"), from("a3").to(clusterIP, "there").reaches("b1")) {
			for _, family := range families {
				port++
				packet := r.packet(p, dataplane.UDP, family, port)
				all.Go(func() { r.sendFragments(p, packet, order) })
			}
		}
		all.Wait()
	}
}

// sendFragments sends one datagram in pieces and checks who answers.
func (r *run) sendFragments(p probe, packet netlab.Packet, order []int) {
	r.Helper()
	packet.Payload = []byte(strings.Repeat("x", 2400))
	client := r.host(p.client)
	var socket *net.UDPConn
	r.must(client.Do(func() (err error) {
		socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(packet.From))
		return err
	}))
	defer func() { _ = socket.Close() }()
	pieces := packet.Fragments(packet.From.Port(), 1000)
	for _, i := range order {
		r.must(client.Send(pieces[i]))
	}
	r.must(socket.SetReadDeadline(time.Now().Add(answerTime)))
	answer := make([]byte, 4096)
	n, _, err := socket.ReadFromUDPAddrPort(answer)
	if err != nil || !strings.HasPrefix(string(answer[:n]), p.servers+" ") {
		r.Errorf("pieces %v from %s to %s (%s): should be answered by %s; answered %.20q, %v", order, p.client, r.targetText(p), packet.To, p.servers, answer[:n], err)
	}
}

// holdFrom holds TCP connections of a probe, from a port of the client's.
func (r *run) holdFrom(p probe, port uint16, every time.Duration) []heldFlow {
	r.Helper()
	return r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
		req.Timeout, req.From = answerTime, netip.AddrPortFrom(h.Addr(versionOf(req.To)), port)
		return h.Hold(req, netlab.Patient(every))
	}, p.in(dataplane.TCP))
}

func versionOf(a netip.AddrPort) int { return int(dataplane.FamilyOf(a.Addr())) }

// spoof sends segments of a client's connection from other hosts. Their
// numbers are far from what the connection's window can be.
func (r *run) spoof(p probe, port uint16, flags ...byte) {
	r.Helper()
	for _, family := range families {
		segment := r.packet(p, dataplane.TCP, family, port)
		for _, by := range []string{"a3", "outside2"} {
			for i, f := range flags {
				segment.Flags, segment.Seq = f, uint32(0x1111+i<<16)
				r.must(r.host(by).Send(segment.Whole()))
			}
		}
	}
}

// believesAll ends a case about segments outside the window for a backend with
// connections of its own.
func (r *run) believesAll() bool {
	own := r.col.ownsConnections()
	if own {
		r.notMeant("it has connections of its own and does not look at windows, as in kube-proxy's mode")
	}
	return own
}

// spoofedSegments does so to busy connections and to quiet ones
// (projectcalico/calico#9605).
func spoofedSegments(r *run) {
	if r.believesAll() {
		return
	}
	r.sync(pathServices())
	var flows []heldFlow
	port := uint16(27000)
	for _, p := range pathsFromOutside() {
		for _, every := range []time.Duration{50 * time.Millisecond, 1500 * time.Millisecond} {
			port++
			flows = append(flows, r.holdFrom(p, port, every)...)
			for _, flags := range [][]byte{{netlab.FlagRST}, {netlab.FlagFIN | netlab.FlagACK}, {netlab.FlagRST | netlab.FlagACK, netlab.FlagSYN}, {netlab.FlagSYN}} {
				r.spoof(p, port, flags...)
			}
		}
	}
	time.Sleep(netlab.Patient(1700 * time.Millisecond))
	r.stopAll(flows)
}

// silence is how long connections say nothing that a RST was seen of. The packet
// path that the eBPF backend once had forgot them after ten seconds.
const silence = 12 * time.Second

// silentAfterReset holds connections that somebody sends a RST outside their window,
// and that are silent then. The function that it returns waits until they have
// asked once more, and been answered.
func (r *run) silentAfterReset(probes ...probe) (answered func()) {
	r.Helper()
	if r.col.ownsConnections() {
		return func() {} // it believes the RST
	}
	const port = 27700
	var flows []heldFlow
	for i, p := range probes {
		some := r.holdFrom(p, port+uint16(i), silence)
		r.asked(some, 1)
		r.spoof(p, port+uint16(i), netlab.FlagRST)
		flows = append(flows, some...)
	}
	return func() {
		r.Helper()
		r.asked(flows, 2)
		r.stopAll(flows)
	}
}

// asked waits until flows have done so many requests.
func (r *run) asked(flows []heldFlow, requests int) {
	r.Helper()
	deadline := time.Now().Add(netlab.Patient(silence) + answerTime)
	for _, f := range flows {
		for {
			sum, err := f.load.Sum()
			r.must(err)
			if sum.Requests >= requests {
				break
			}
			if time.Now().After(deadline) {
				r.Errorf("%s: should have asked %d times; %s", f.name, requests, sum)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func spoofedDrain(r *run) {
	if r.believesAll() {
		return
	}
	w := func(endpoint string) world {
		return world{services: []service{{name: "web", frontends: frontendsOf(kinds, frontend{pool: on(endpoint), snat: dataplane.SNATAll})}}}
	}
	r.sync(w("b1"))
	const port = 27500
	probes := toEach(kinds, "web", from("outside").reaches("b1"))
	var flows []heldFlow
	for i, p := range probes {
		flows = append(flows, r.holdFrom(p, port+uint16(i), 50*time.Millisecond)...)
	}
	r.sync(w("a1"))
	for i, p := range probes {
		r.spoof(p, port+uint16(i), netlab.FlagSYN)
	}
	time.Sleep(netlab.Patient(300 * time.Millisecond))
	r.stopAll(flows)
}

// unfinished begins connections from where nobody is. The kernel has one limit
// for all namespaces' connections and does not let one of them set it, so that
// no test can fill the table without harm to others.
func unfinished(r *run) {
	r.sync(wideWorld())
	const each = 1000
	for _, p := range append(toEach(kinds, "there", from("outside2")), toEach(externalKinds, "kept", from("outside2"))...) {
		for _, family := range families {
			segment := r.packet(p, dataplane.TCP, family, 2000)
			segment.Flags = netlab.FlagSYN
			nobody := map[dataplane.Family]string{dataplane.IPv4: "10.99.0.0", dataplane.IPv6: "fd99::"}[family]
			from, packets := netip.MustParseAddr(nobody), make([][]byte, each)
			for i := range packets {
				from = from.Next()
				segment.From, segment.Seq = netip.AddrPortFrom(from, uint16(2000+i)), uint32(i)
				packets[i] = segment.Whole()
			}
			r.must(r.host(p.client).Send(packets...))
		}
	}
	r.check(wide()...)
}

// nodePortNumbers asks an outside server from a port that is a NodePort's number
// (cilium/cilium#44348): by a socket of the node, and by a pod's socket that a
// CNI's rule masquerades with it.
func nodePortNumbers(r *run) {
	if r.col.ownsConnections() {
		r.notMeant("it has connections of its own and takes each packet to a NodePort for a client's, as in kube-proxy's mode")
		return
	}
	r.sync(pathServices())
	n := r.node("node-a")
	port := r.frontendAddr(r.service("there"), nodePort, dataplane.IPv4).Port()
	for _, family := range families {
		for _, protocol := range protocols {
			r.asks("outside2", "node-a", protocol, netip.AddrPortFrom(n.Addr(int(family)), port))
		}
	}
	for f, family := range []string{"ip", "ip6"} {
		r.nft(n.Host, family, fmt.Sprintf("chain post { type nat hook postrouting priority 90; %s saddr %s meta l4proto { tcp, udp, sctp } th dport %d snat to %s; }",
			family, r.host("a3").Addrs[f], serverPort, netip.AddrPortFrom(n.Addrs[f], port)))
		for _, protocol := range protocols {
			r.asks("outside", "a3", protocol, netip.AddrPortFrom(r.host("a3").Addrs[f], port+1))
		}
	}
}

// externalNumbers asks from an address and port that are a Service's, and the node's.
func externalNumbers(r *run) {
	r.sync(pathServices())
	for _, family := range families {
		at := r.frontendAddr(r.service("there"), externalIP, family)
		r.bind(r.node("node-a"), at.Addr())
		for _, protocol := range protocols {
			r.asks("outside2", "node-a", protocol, at)
		}
	}
}

// asks checks that a client's socket at an address gets the answer of an outside server.
func (r *run) asks(server, client string, protocol dataplane.Protocol, at netip.AddrPort) {
	r.Helper()
	to := r.server(server, dataplane.FamilyOf(at.Addr()))
	a, err := r.host(client).Ask(netlab.Request{Protocol: wireName(protocol), From: at, To: to, Timeout: answerTime})
	r.must(err)
	if a.Server != server {
		r.Errorf("%s: %s from %s to %s (%s): should be answered; %s", protocol, client, at, server, to, a)
	}
}

// mappedAddresses sends IPv6 packets whose addresses stand for a client's IPv4
// connection.
func mappedAddresses(r *run) {
	r.sync(pathServices())
	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	gateway, err := r.node("node-a").HardwareAddr(netlab.PodInterfacePrefix + "3")
	r.must(err)
	const port = 28000
	p := from("a3").to(loadBalancer, "there").reaches("b1").over(dataplane.IPv4) // whose source port the node chooses
	held := r.holdFrom(p, port, 50*time.Millisecond)
	for _, protocol := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		packet := r.packet(p, protocol, dataplane.IPv4, port)
		packet.From, packet.To = mapped(packet.From), mapped(packet.To)
		for _, packet.Flags = range []byte{netlab.FlagRST, netlab.FlagSYN} {
			r.unheardBy("b1", func() { r.must(r.host("a3").SendFrame("eth0", gateway, packet.Whole())) })
		}
	}
	time.Sleep(netlab.Patient(200 * time.Millisecond))
	r.stopAll(held)
}

// unheardBy checks that nothing but requests over connections that exist
// reaches a host's servers for a while after f.
func (r *run) unheardBy(host string, f func()) {
	r.Helper()
	before, err := r.host(host).Heard()
	r.must(err)
	f()
	time.Sleep(netlab.Patient(100 * time.Millisecond))
	after, err := r.host(host).Heard()
	r.must(err)
	if after != before {
		r.Errorf("%d packets reached %s", after-before, host)
	}
}

// zeroAddresses sends frames to a node whose IP address is the unspecified one
// (cilium/cilium#17454).
func zeroAddresses(r *run) {
	r.sync(pathServices())
	a := r.node("node-a")
	to, err := a.HardwareAddr("eth0")
	r.must(err)
	for _, family := range families {
		packet := r.packet(from("outside").toNodePort("there", "node-a"), dataplane.UDP, family, 28500)
		packet.To = netip.AddrPortFrom(family.Unspecified(), packet.To.Port())
		r.unheardBy("b1", func() { r.must(r.lab.Router().SendFrame("node-a", to, packet.Whole())) })
	}
}

// otherHardware sends frames that a node sees without being meant: by an uplink
// that takes all, and by one that is a port of a bridge (projectcalico/calico#8918).
func otherHardware(r *run) {
	r.sync(wideWorld())
	a := r.node("node-a")
	r.shell(a, "ip link set eth0 promisc on")
	r.Cleanup(func() { r.shell(a, "ip link set eth0 promisc off") })
	r.framesForOthers()
	r.bridgeUplink()
	r.shell(a, "ip link set br0 promisc on")
	r.framesForOthers()
}

// framesForOthers sends frames to a node's uplink that are for another host, to
// Services with endpoints and without, and checks that no server sees them and
// nothing comes back.
func (r *run) framesForOthers() {
	r.Helper()
	const port = 28600
	somebody := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	client := r.host("outside")
	r.sh(client, fmt.Sprintf(`nft 'table inet answers { chain in { type filter hook prerouting priority -300; meta l4proto { tcp, udp } th dport %d counter;
		icmp type destination-unreachable counter; icmpv6 type destination-unreachable counter; }; }'`, port))
	r.unheardBy("a1", func() {
		for _, family := range families {
			for _, protocol := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
				for _, p := range append(toEach(kinds, "here", from("outside")), toEach(kinds, "empty", from("outside"))...) {
					packet := r.packet(p, protocol, family, port)
					packet.Flags = netlab.FlagSYN
					r.must(r.lab.Router().SendFrame("node-a", somebody, packet.Whole()))
				}
			}
		}
	})
	if counted := r.sh(client, "nft list table inet answers | grep 'counter packets [1-9]'; nft delete table inet answers"); counted != "" {
		r.Errorf("the sender of frames for another host got answers:\n%s", counted)
	}
}

// movedAddress has the router send a load balancer IP's packets to node-b, which
// knows nothing of the connections so far (projectcalico/calico#8882).
func movedAddress(r *run) {
	lb := func(name string, f frontend) service {
		f.kind = loadBalancer
		return service{name: name, frontends: []frontend{f}}
	}
	r.sync(world{services: []service{
		lb("cluster", frontend{pool: on("b1"), snat: dataplane.SNATAll}),
		lb("local", frontend{pool: own("a1 b1"), snat: dataplane.SNATNode}.or(on("a1 b1"))),
	}})
	probes := []probe{from("outside").to(loadBalancer, "cluster"), from("outside").to(loadBalancer, "local")}
	var flows []heldFlow
	for i, p := range probes {
		flows = append(flows, r.holdFrom(p, 29000+uint16(i), 50*time.Millisecond)...)
	}
	for _, p := range probes {
		for _, family := range families {
			vip := singles(r.request(p, dataplane.TCP, family).To.Addr())[0]
			r.must(r.lab.Announce(vip, r.node("node-b")))
			r.Cleanup(func() { r.must(r.lab.Withdraw(vip)) })
		}
	}
	time.Sleep(netlab.Patient(time.Second))
	for _, f := range flows {
		sum, err := f.load.Stop()
		r.must(err)
		if sum.First.Outcome != netlab.Reset || sum.FirstAt > netlab.Patient(time.Second) {
			r.Errorf("%s: should be reset within a second of the move; %s", f.name, sum)
		}
	}
	r.check(from("outside").to(loadBalancer, "cluster").reaches("b1"), from("outside").to(loadBalancer, "local").reaches("b1"))
}

// begunBefore has clients connect before a Service exists or has endpoints, and
// brings those before the next SYN (kubernetes/kubernetes#101607). What left the
// node is another matter: as with kube-proxy, the kernel keeps the connection to an
// unknown load balancer IP as it began, without translation, while SYNs go on.
func begunBefore(r *run) {
	local := func(endpoint string) service {
		return service{name: "local", frontends: frontendsOf(externalKinds, frontend{pool: own(endpoint), snat: dataplane.SNATNode})}
	}
	after := world{services: []service{serving("other", "a1"), serving("web", "b1"), local("a1")}}
	var flows sync.WaitGroup
	begin := func(p probe, server string) {
		for _, family := range families {
			req := r.request(p, dataplane.TCP, family)
			req.Timeout = answerTime + netlab.Patient(7*time.Second) // three SYNs
			flows.Go(func() {
				a, err := r.host(p.client).Ask(req)
				if err != nil || a.Server != server || !a.Resent {
					r.Errorf("%s: %s to %s (%s): its first SYN should be dropped and %s answer the next; %s (sent again: %t), %v",
						family, p.client, r.targetText(p), req.To, server, a, a.Resent, err)
				}
			})
		}
	}
	r.sync(world{services: []service{serving("other", "a1"), local("")}})
	r.world = after // whose Services have addresses
	for _, client := range []string{"a3", "node-a", "outside"} {
		begin(from(client).to(clusterIP, "web"), "b1")
	}
	for _, p := range toEach(externalKinds, "local", from("outside")) {
		begin(p, "a1")
	}
	time.Sleep(netlab.Patient(300 * time.Millisecond))
	r.sync(after)
	flows.Wait()
}

// macvlanPod gives a4 a device on its node's uplink (kubernetes/kubernetes#53089).
// Its packets must not meet what its node does with those of the node's pods.
func macvlanPod(r *run) {
	lb := frontend{kind: loadBalancer, pool: own("a1 b1"), snat: dataplane.SNATNode}.or(on("a1 b1"))
	r.sync(world{services: []service{{name: "web", frontends: []frontend{lb}}}})
	pod, router := r.host("a4"), r.lab.Router()
	r.ip(r.node("node-a").Host, "link add mv0 link eth0 type macvlan mode bridge")
	r.ip(r.node("node-a").Host, "link set mv0 netns "+pod.Namespace)
	r.Cleanup(func() { r.ip(pod, "link del mv0") })
	r.ip(pod, "link set mv0 up")
	gateways := map[dataplane.Family]string{dataplane.IPv4: "10.20.1.1", dataplane.IPv6: "fd20:0:0:1::1"}
	addrs := map[dataplane.Family]netip.Prefix{dataplane.IPv4: netip.MustParsePrefix("10.20.1.50/24"), dataplane.IPv6: netip.MustParsePrefix("fd20:0:0:1::50/64")}
	for _, family := range families {
		vip := r.frontendAddr(r.service("web"), loadBalancer, family).Addr()
		r.must(pod.AddAddress("mv0", addrs[family]))
		r.ip(pod, fmt.Sprintf("route add %s via %s dev mv0", vip, gateways[family]))
		r.ip(router, fmt.Sprintf("route add %s via %s", vip, r.node("node-b").Addr(int(family))))
		r.Cleanup(func() { r.ip(router, fmt.Sprintf("route del %s via %s", vip, r.node("node-b").Addr(int(family)))) })
	}
	at := func(family dataplane.Family) netip.AddrPort {
		return r.frontendAddr(r.service("web"), loadBalancer, family)
	}
	p := from("a4").toAddr("the load balancer IP that node-b announces", at).reaches("b1")
	p.source = func(family dataplane.Family) netip.Addr { return addrs[family].Addr() }
	r.check(p)
}

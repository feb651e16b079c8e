package conntrack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// A resolver on the node keeps its source port for ever. It must reach a living
// endpoint again after each change, with the real rules of a Service in the way.
func TestClientKeepsItsPort(t *testing.T) {
	eachFamily(t, func(t *testing.T, f dataplane.Family) {
		enterNetns(t)
		n := newTinyNode(t, f)
		podA, podB := n.serve(t, "a", 5001), n.serve(t, "b", 5002)

		n.forward(t, netip.AddrPort{})
		n.synced()
		n.expect(t, "", "the Service has no endpoints")
		n.forward(t, podA)
		n.expect(t, "", "it has one, but the flow from before still has no NAT")
		n.synced(podA)
		n.expect(t, "a", "that flow ended")
		n.forward(t, podB)
		n.expect(t, "a", "the flow sticks to the endpoint that went")
		n.synced(podB)
		n.expect(t, "b", "that flow ended")
		n.forward(t, podB)
		n.synced(podB, podA)
		n.expect(t, "b", "an endpoint more disturbs nobody")
		n.forward(t, netip.AddrPort{})
		n.expect(t, "b", "the Service is deleted, the flow lives on")
		n.gone()
		n.expect(t, "", "that flow ended")
	})
}

// tinyNode is a namespace with a UDP Service on a made-up address, forwarded by
// one iptables rule, and a client with a fixed port.
type tinyNode struct {
	family   dataplane.Family
	iptables string
	frontend netip.AddrPort
	client   *net.UDPConn
	cleaner  *Cleaner
	step     func()
}

func newTinyNode(t *testing.T, f dataplane.Family) *tinyNode {
	n := &tinyNode{family: f, iptables: "iptables", frontend: netip.MustParseAddrPort("10.96.0.10:53")}
	ip, wildcard := "-4", "0.0.0.0:0"
	if f == dataplane.IPv6 {
		n.iptables, ip, wildcard = "ip6tables", "-6", "[::]:0"
		n.frontend = netip.MustParseAddrPort("[fd00:96::a]:53")
	}
	run(t, "ip", ip, "route", "add", "local", n.frontend.Addr().String(), "dev", "lo")
	run(t, n.iptables, "-w", "-t", "nat", "-N", "SERVICE")
	run(t, n.iptables, "-w", "-t", "nat", "-A", "OUTPUT", "-j", "SERVICE")
	// The kernel tracks connections only while some rule asks for it.
	run(t, n.iptables, "-w", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(wildcard)))
	if err != nil {
		t.Fatalf("opening the client's socket: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	n.client = conn
	var passes []Pass
	n.cleaner = newCleaner(t, f, &passes)
	n.step = func() { n.cleaner.step(t.Context()) }
	return n
}

// serve starts an endpoint that answers every packet with its name.
func (n *tinyNode) serve(t *testing.T, name string, port uint16) netip.AddrPort {
	ip := "127.0.0.1"
	if n.family == dataplane.IPv6 {
		ip = "::1"
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatalf("serving endpoint %s: %v", name, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteToUDPAddrPort([]byte(name), from)
			}
		}
	}()
	return addr
}

// forward is the backend's part: new flows go to the endpoint; invalid: nowhere.
func (n *tinyNode) forward(t *testing.T, to netip.AddrPort) {
	run(t, n.iptables, "-w", "-t", "nat", "-F", "SERVICE")
	if to.IsValid() {
		run(t, n.iptables, "-w", "-t", "nat", "-A", "SERVICE", "-p", "udp", "-d", n.frontend.Addr().String(),
			"--dport", "53", "-j", "DNAT", "--to-destination", to.String())
	}
}

// synced tells the Cleaner of the Service with these endpoints, sorted.
func (n *tinyNode) synced(serving ...netip.AddrPort) {
	p := &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: "kube-system", Service: "dns", Protocol: dataplane.UDP, Family: n.family},
		Frontends: []dataplane.Frontend{{Kind: dataplane.ClusterIP, Addr: n.frontend, Pool: &dataplane.Pool{}}},
	}
	for _, addr := range serving {
		p.Serving = append(p.Serving, dataplane.Endpoint{Addr: addr})
	}
	n.cleaner.Synced(&dataplane.Snapshot{Node: &dataplane.Node{}, Ports: dataplane.MakePorts(p)})
	n.step()
}

func (n *tinyNode) gone() {
	n.cleaner.Synced(&dataplane.Snapshot{Node: &dataplane.Node{}})
	n.step()
}

// expect sends from the client's one port and looks who answers; "": nobody.
func (n *tinyNode) expect(t *testing.T, want, when string) {
	t.Helper()
	if _, err := n.client.WriteToUDPAddrPort([]byte("?"), n.frontend); err != nil {
		t.Fatalf("%s: sending: %v", when, err)
	}
	wait := 2 * time.Second
	if want == "" {
		wait = 100 * time.Millisecond
	}
	_ = n.client.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 16)
	k, _, err := n.client.ReadFromUDPAddrPort(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s: receiving: %v", when, err)
	}
	if got := string(buf[:k]); got != want {
		t.Errorf("%s: answered by %q, want %q", when, got, want)
	}
}

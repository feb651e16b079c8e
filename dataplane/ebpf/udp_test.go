package ebpf

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// udpSnapshot is UDP Services on endpoints of this host: name, address, endpoint.
func udpSnapshot(services ...[3]string) *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	for _, s := range services {
		pool := poolOf()
		if s[2] != "" {
			pool = poolOf(s[2])
		}
		ports = append(ports, portOf(s[0], dataplane.UDP, frontendAt(dataplane.ClusterIP, s[1], pool)))
	}
	return snapshot(ports...)
}

// udpClient is an unconnected UDP socket.
type udpClient struct {
	t testing.TB
	c net.PacketConn
}

func newUDPClient(t testing.TB, network, bind string) udpClient {
	t.Helper()
	c, err := net.ListenPacket(network, bind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return udpClient{t, c}
}

// ask sends a datagram and gives the answer, which is its server's own address,
// and whom the socket takes for the sender; "": nobody answers.
func (u udpClient) ask(to string) (server, sender string) {
	u.t.Helper()
	if _, err := u.c.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		u.t.Fatalf("sending to %s: %v", to, err)
	}
	if err := u.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		u.t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, from, err := u.c.ReadFrom(buf)
	if err != nil {
		return "", ""
	}
	return string(buf[:n]), from.String()
}

func (u udpClient) expect(to, server, sender string) {
	u.t.Helper()
	if gotServer, gotSender := u.ask(to); gotServer != server || gotSender != sender {
		u.t.Errorf("asked %s: %q answers as %q; want %q as %q", to, gotServer, gotSender, server, sender)
	}
}

const vipA, vipB, endpointUDP = "10.96.0.1:53", "10.96.0.2:53", "127.0.1.9:5300"

// A connected UDP socket is left to packets whatever becomes of the Service, so
// that connect() never fails and no socket is tied to an endpoint.
func TestConnectedUDPIsLeftToPackets(t *testing.T) {
	b := openBackend(t, testOptions(t))
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}, [3]string{"none", vipB, ""}))
	for _, to := range []string{vipA, vipB, "10.96.0.1:54", "[::ffff:10.96.0.1]:53"} {
		addr := netip.MustParseAddrPort(to)
		family, sockaddr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
		if addr.Addr().Is4() {
			family, sockaddr = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, sockaddr); err != nil {
			t.Errorf("connect to %s: %v", to, err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			t.Error(err)
		}
		switch p := peer.(type) {
		case *unix.SockaddrInet4:
			if got := netip.AddrPortFrom(netip.AddrFrom4(p.Addr), uint16(p.Port)); got != addr {
				t.Errorf("its peer is %s, want %s", got, addr)
			}
		case *unix.SockaddrInet6:
			if got := netip.AddrPortFrom(netip.AddrFrom16(p.Addr), uint16(p.Port)); got != addr {
				t.Errorf("its peer is %s, want %s", got, addr)
			}
		}
		var noted programs.SockPeer
		if err := b.sockets.programs.Maps[programs.SockMapPeers].Lookup(uint32(fd), &noted); err == nil {
			t.Errorf("the socket connected to %s is noted as translated to %+v", to, noted)
		}
		_ = unix.Close(fd)
	}
}

// Two Services with one endpoint: a socket's flow to the second is left to
// packets, and each sender is seen by the address that was asked.
func TestTwoServicesWithOneEndpoint(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}, [3]string{"b", vipB, endpointUDP}))
	c := newUDPClient(t, "udp4", ":0")
	c.expect(vipA, endpointUDP, vipA)
	c.expect(vipB, "", "") // there is no packet backend here
	c.expect(vipA, endpointUDP, vipA)
	newUDPClient(t, "udp4", ":0").expect(vipB, endpointUDP, vipB)
	newUDPClient(t, "udp", ":0").expect("[::ffff:10.96.0.2]:53", endpointUDP, vipB)
}

// A peer that is an endpoint and is asked directly answers as itself.
func TestEndpointThatIsAskedDirectly(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}))
	first := newUDPClient(t, "udp4", ":0")
	first.expect(vipA, endpointUDP, vipA)
	first.expect(endpointUDP, endpointUDP, endpointUDP)
	first.expect(vipA, "", "") // by packets from now on
	direct := newUDPClient(t, "udp4", ":0")
	direct.expect(endpointUDP, endpointUDP, endpointUDP)
	direct.expect(vipA, "", "")
	direct.expect(endpointUDP, endpointUDP, endpointUDP)
}

// A flow goes on though its socket sends elsewhere as well.
func TestFlowGoesOnBesideOthers(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	udpEcho(t, "127.0.1.10:5300")
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}))
	c := newUDPClient(t, "udp4", ":0")
	c.expect(vipA, endpointUDP, vipA)
	c.expect("127.0.1.10:5300", "127.0.1.10:5300", "127.0.1.10:5300")
	c.expect(vipA, endpointUDP, vipA)
	b.sockets.modeFlags = programs.SockFlagNODE_ONLY | programs.SockFlagSTAND_ASIDE // nothing new is translated
	if err := b.sockets.writeSettings(b.sockets.modeFlags); err != nil {
		t.Fatal(err)
	}
	c.expect(vipA, endpointUDP, vipA)
	early := newUDPClient(t, "udp4", ":0")
	early.expect(vipA, "", "")
	if err := b.sockets.writeSettings(0); err != nil {
		t.Fatal(err)
	}
	early.expect(vipA, "", "") // conntrack may have its flow
	newUDPClient(t, "udp4", ":0").expect(vipA, endpointUDP, vipA)
}

// A socket that is connected to somebody else hears nobody else: what it sends to
// a Service is left to packets.
func TestConnectedSocketThatSendsToAService(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	vip := &unix.SockaddrInet4{Port: 53, Addr: [4]byte{10, 96, 0, 1}}
	flows := func() int { return len(keysIn(t, b.sockets.programs.Maps[programs.SockMapUdpFlows])) }
	before := flows()
	if err := unix.Connect(fd, vip); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(fd, []byte("?"), 0, vip); err != nil || flows() != before {
		t.Errorf("a connected socket that sends to the Service by its address: %v, %d new flows", err, flows()-before)
	}
	disconnect(t, fd)
	before = flows()
	if err := unix.Sendto(fd, []byte("?"), 0, vip); err != nil || flows() == before {
		t.Errorf("after connect(AF_UNSPEC): %v, %d new flows; want one", err, flows()-before)
	}
}

// disconnect is connect(AF_UNSPEC).
func disconnect(t *testing.T, fd int) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unix.RawSockaddr{Family: unix.AF_UNSPEC})), unix.SizeofSockaddrInet4); errno != 0 {
		t.Fatal(errno)
	}
}

// A socket whose program chose its port or address is left to packets; one that
// is bound to nothing in particular is not.
func TestBoundUDPSocketsAreLeftToPackets(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}))
	newUDPClient(t, "udp4", ":5353").expect(vipA, "", "")
	newUDPClient(t, "udp4", "127.0.0.1:0").expect(vipA, "", "")
	newUDPClient(t, "udp", "[::]:5354").expect("[::ffff:10.96.0.1]:53", "", "")
	newUDPClient(t, "udp4", "0.0.0.0:0").expect(vipA, endpointUDP, vipA)
}

// What a Service's endpoint sends long after the flow is over is its own.
func TestSenderIsItselfAfterAFlowIsOver(t *testing.T) {
	b := openBackend(t, testOptions(t))
	udpEcho(t, endpointUDP)
	mustSync(t, b, nil, udpSnapshot([3]string{"a", vipA, endpointUDP}))
	c := newUDPClient(t, "udp4", ":0")
	c.expect(vipA, endpointUDP, vipA)
	var key programs.SockUdpFlowKey
	var flow programs.SockUdpFlow
	answers := b.sockets.programs.Maps[programs.SockMapUdpAnswers]
	for all := answers.Iterate(); all.Next(&key, &flow); {
		flow.Used = 1
		if err := answers.Put(key, flow); err != nil {
			t.Fatal(err)
		}
	}
	server, err := net.DialUDP("udp4", nil, c.c.LocalAddr().(*net.UDPAddr)) // not the endpoint
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	c.expect(endpointUDP, endpointUDP, endpointUDP)
}

// In mode tcp UDP is left to packets, and TCP is not.
func TestModeTCP(t *testing.T) {
	o := testOptions(t)
	o.SocketLB = TCP
	b := openBackend(t, o)
	udpEcho(t, endpointUDP)
	want := udpSnapshot([3]string{"a", vipA, endpointUDP})
	want.Ports = want.Ports.With([]*dataplane.ServicePort{web("tcp", "10.96.0.1:80", "10.40.1.1:80")}, nil)
	mustSync(t, b, nil, want)
	newUDPClient(t, "udp4", ":0").expect(vipA, "", "")
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	if got, err := connectFrom(t, b, inPod, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got != "10.40.1.1:80" {
		t.Errorf("a pod's socket got %q, %v", got, err)
	}
}

// In mode node sockets of pods are left to packets.
func TestModeNode(t *testing.T) {
	withAndWithoutCookies(t, func(t *testing.T, o Options) {
		o.SocketLB = Node
		testModeNode(t, openBackend(t, o))
	})
}

// Before Linux 5.14 mode auto works as node, and says so.
func TestModeAutoWithoutCookies(t *testing.T) {
	withAndWithoutCookies(t, func(t *testing.T, o Options) {
		if o.SocketLB = Auto; !o.noCookies {
			return
		}
		testModeNode(t, openBackend(t, o))
	})
}

// It says so in whatever network namespace it runs, and leaves pods alone.
func TestModeAutoSaysThatItWorksAsNode(t *testing.T) {
	o := testOptions(t)
	o.SocketLB, o.noCookies = Auto, true
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	opened, err := testDriver(o).Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	b := opened.(*accelerated)
	mustSync(t, b, nil, snapshot(web("tcp", "10.96.0.1:80", "10.40.1.1:80")))
	if got, err := connectFrom(t, b, inPod, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got != "" {
		t.Errorf("a pod's socket got %q, %v; want it left alone", got, err)
	}
	const says = "older than 5.14"
	if w := b.SocketsOf(netip.MustParseAddr("10.40.1.9")); w.AtSocket || !strings.Contains(w.Why, says) {
		t.Errorf("a pod's connections are said to be translated at the socket: %+v", w)
	}
	if s := b.Sockets(); !strings.Contains(s.Reason, says) {
		t.Errorf("status says %q", s.Reason)
	}
	if n := strings.Count(log.String(), says); n != 1 {
		t.Errorf("the log says it %d times, want once:\n%s", n, log.String())
	}
}

func testModeNode(t *testing.T, b *accelerated) {
	t.Helper()
	mustSync(t, b, nil, snapshot(web("tcp", "10.96.0.1:80", "10.40.1.1:80")))
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	if got, err := connectFrom(t, b, inPod, netip.MustParseAddrPort("10.96.0.1:80")); err != nil || got != "" {
		t.Errorf("a pod's socket got %q, %v; want it left alone", got, err)
	}
	if w := b.SocketsOf(netip.MustParseAddr("10.40.1.9")); w.AtSocket {
		t.Errorf("a pod's connections are said to be translated at the socket: %s", w.Why)
	}
}

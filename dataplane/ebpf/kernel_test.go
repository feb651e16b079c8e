package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// socketAt is where a call from a socket is made.
type socketAt string

const (
	onNode socketAt = "node"
	inPod  socketAt = "pod" // any other network namespace
)

// connectFrom connects a TCP socket and tells which endpoint it got ("": its
// destination was left alone) or the error of connect. Routes lead nowhere, but in
// the machine's first network namespace: there nothing waits for an answer.
func connectFrom(t testing.TB, b *accelerated, where socketAt, to netip.AddrPort) (endpoint string, err error) {
	t.Helper()
	if where == onNode && b.sockets.programs.Netns == 0 {
		inOuter(t, func() error {
			endpoint, err = connectHere(b, to)
			return nil
		})
		return endpoint, err
	}
	if where == inPod {
		err = netns.InScratch(func() (err error) {
			endpoint, err = connectHere(b, to)
			return err
		})
		return endpoint, err
	}
	return connectHere(b, to)
}

func connectHere(b *accelerated, to netip.AddrPort) (string, error) {
	family, sockaddr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sockaddr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, sockaddr); err != nil && !slices.Contains([]error{unix.EINPROGRESS, unix.ENETUNREACH, unix.EADDRNOTAVAIL, unix.ECONNREFUSED}, err) {
		return "", err
	}
	var p programs.SockPeer
	if err := b.sockets.programs.Maps[programs.SockMapPeers].Lookup(uint32(fd), &p); err != nil {
		return "", nil
	}
	return programs.FromAddrPort(p.Endpoint, p.EndpointPort).String(), nil
}

func TestSocketConnect(t *testing.T) { withAndWithoutCookies(t, testSocketConnect) }

func testSocketConnect(t *testing.T, o Options) {
	b := openBackend(t, o)
	node := frontendAt(dataplane.NodePort, "0.0.0.0:30000", poolOf("10.40.1.1:8080"))
	node.Inside = poolOf("10.40.1.2:8080")
	node6 := frontendAt(dataplane.NodePort, "[::]:30000", poolOf("[fd40::1]:8080"))
	ranged := frontendAt(dataplane.LoadBalancer, "10.97.0.2:53", poolOf("10.40.1.4:8080"))
	ranged.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	want := snapshot(
		portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:8080")), node),
		portOf("web6", dataplane.TCP, frontendAt(dataplane.ClusterIP, "[fd96::1]:53", poolOf("[fd40::1]:8080")), node6),
		portOf("none", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.2:53", poolOf())),
		portOf("ranged", dataplane.TCP, ranged),
		portOf("udp", dataplane.UDP, frontendAt(dataplane.ClusterIP, "10.96.0.3:53", poolOf("10.40.1.1:8080"))),
		portOf("bound", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.10:53", poolOf("10.40.1.1:8080"))),
	)
	want.Node.Bound = []netip.Prefix{netip.MustParsePrefix("10.96.0.10/32"), netip.MustParsePrefix("192.0.2.1/32")}
	mustSync(t, b, nil, want)
	for _, c := range []struct {
		name string
		from socketAt
		to   string
		want string // the endpoint; "": left alone; or the error
	}{
		{"a ClusterIP from the node", onNode, "10.96.0.1:53", "10.40.1.1:8080"},
		{"a ClusterIP from a pod", inPod, "10.96.0.1:53", "10.40.1.1:8080"},
		{"IPv6", onNode, "[fd96::1]:53", "[fd40::1]:8080"},
		{"an IPv6 socket and an IPv4-mapped address", onNode, "[::ffff:10.96.0.1]:53", "10.40.1.1:8080"},
		{"a NodePort at an address of the node", onNode, "192.0.2.1:30000", "10.40.1.2:8080"},
		{"the same from a pod, which this node can tell", inPod, "192.0.2.1:30000", "10.40.1.2:8080"},
		{"a NodePort at localhost", onNode, "127.0.0.1:30000", "10.40.1.2:8080"},
		{"and anywhere in 127.0.0.0/8", onNode, "127.1.2.3:30000", "10.40.1.2:8080"},
		{"a pod's own localhost", inPod, "127.0.0.1:30000", ""},
		{"a NodePort at another node's address", onNode, "192.0.2.2:30000", ""},
		{"a NodePort over IPv6", inPod, "[2001:db8::1]:30000", "[fd40::1]:8080"},
		{"an unspecified address is the client's own host", onNode, "0.0.0.0:30000", ""},
		{"and in a pod", inPod, "0.0.0.0:30000", ""},
		{"and over IPv6", inPod, "[::]:30000", ""},
		{"and IPv4-mapped", onNode, "[::ffff:0.0.0.0]:30000", ""},
		{"no endpoint", onNode, "10.96.0.2:53", ""},
		{"no endpoint, from a pod", inPod, "10.96.0.2:53", ""},
		{"source ranges: the packets tell the client", onNode, "10.97.0.2:53", ""},
		{"a port that the ClusterIP does not have", onNode, "10.96.0.1:54", ""},
		{"another protocol's port", onNode, "10.96.0.3:53", ""},
		{"a Service's address that the node has as well", onNode, "10.96.0.10:53", ""},
		{"no Service's address", onNode, "10.96.9.9:53", ""},
	} {
		got, err := connectFrom(t, b, c.from, netip.MustParseAddrPort(c.to))
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: connect to %s got %q, want %q", c.name, c.to, got, c.want)
		}
	}
}

// TestHoldPodSockets: while another backend drains, sockets of pods are left alone, those of
// the node are not; then Observe tells, and a repair ends it.
func TestHoldPodSockets(t *testing.T) { withAndWithoutCookies(t, testHoldPodSockets) }

func testHoldPodSockets(t *testing.T, o Options) {
	var hold atomic.Bool
	hold.Store(true)
	b := openBackend(t, o)
	b.sockets.cfg.Draining = hold.Load
	want := snapshot(portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:8080"))))
	check := func(inPodWant string) {
		t.Helper()
		for from, want := range map[socketAt]string{onNode: "10.40.1.1:8080", inPod: inPodWant} {
			if got, err := connectFrom(t, b, from, netip.MustParseAddrPort("10.96.0.1:53")); err != nil || got != want {
				t.Errorf("from a %s: %q, %v; want %q", from, got, err, want)
			}
		}
	}
	mustSync(t, b, nil, want)
	checkHolds(t, b, want)
	check("")
	hold.Store(false)
	if o, err := b.Observe(t.Context()); err != nil || len(o.Other) != 1 {
		t.Errorf("Observe says %+v, %v; want one difference", o, err)
	}
	mustSync(t, b, nil, want)
	checkHolds(t, b, want)
	check("10.40.1.1:8080")
}

// An element that is not whole, as a reader may see it that is overtaken by the
// kernel's next use of its memory, is left to packets. A Sync mends it.
func TestHalfWrittenElementsAreLeftToPackets(t *testing.T) {
	b := openBackend(t, testOptions(t))
	const frontend, endpoint = "10.96.0.1:80", "10.40.1.1:80"
	want := snapshot(web("a", frontend, endpoint))
	mustSync(t, b, nil, want)
	for name, tear := range map[string]func() error{
		programs.SockMapFrontends: func() error {
			return tearFirst(b.sockets.maps.frontends, func(_ *programs.SockFrontendKey, f *programs.SockFrontend) { f.Inside++ })
		},
		programs.SockMapServices: func() error {
			return tearFirst(b.sockets.maps.services, func(_ *uint32, s *programs.SockService) {
				for i := range s.Pools {
					s.Pools[i].Count++
				}
			})
		},
		programs.SockMapServices + ", affinity": func() error {
			return tearFirst(b.sockets.maps.services, func(_ *uint32, s *programs.SockService) { s.AffinityS = 9 })
		},
		programs.SockMapSlots: func() error {
			return tearFirst(b.sockets.maps.slots, func(_ *programs.SockSlotKey, s *programs.SockSlot) { s.Place.Addr.W[3]++ })
		},
	} {
		leadsTo(t, b, frontend, endpoint)
		if err := tear(); err != nil {
			t.Fatal(err)
		}
		if got, err := connectFrom(t, b, onNode, netip.MustParseAddrPort(frontend)); err != nil || got != "" {
			t.Errorf("%s: a half-written element leads to %q, %v", name, got, err)
		}
		if o, err := b.Observe(t.Context()); err != nil || len(o.Other) == 0 {
			t.Errorf("%s: Observe says %+v, %v; want a difference", name, o, err)
		}
		mustSync(t, b, nil, want)
	}
	leadsTo(t, b, frontend, endpoint)
}

// tearFirst changes the first element of a map.
func tearFirst[K, V any](m *ebpf.Map, change func(*K, *V)) error {
	var key K
	var value V
	all := m.Iterate()
	if !all.Next(&key, &value) {
		return errors.Join(errors.New("the map is empty"), all.Err())
	}
	change(&key, &value)
	return m.Put(key, value)
}

// No mixture of the words of two values passes for one of them.
func TestChecksTellMixturesOfWords(t *testing.T) {
	key := programs.SockSlotKey{Service: 7, Generation: 3, Slot: 1}
	at := func(addr string) programs.SockSlot {
		return programs.ToSlot(key, dataplane.Endpoint{Addr: netip.MustParseAddrPort(addr)})
	}
	for _, two := range [][2]programs.SockSlot{
		{at("10.40.1.1:80"), at("10.40.1.2:80")}, {at("10.40.1.1:80"), at("10.40.2.2:81")}, {at("10.40.1.1:80"), at("[fd40::1]:80")},
		{at("10.40.1.1:80"), programs.ToSlot(programs.SockSlotKey{Service: 8, Generation: 3, Slot: 1}, dataplane.Endpoint{Addr: netip.MustParseAddrPort("10.40.1.9:80")})},
	} {
		const words = unsafe.Sizeof(programs.SockSlot{}) / 4
		a, b := *(*[words]uint32)(unsafe.Pointer(&two[0])), *(*[words]uint32)(unsafe.Pointer(&two[1]))
		for which := range 1 << words {
			mixed := a
			for i := range mixed {
				if which>>i&1 != 0 {
					mixed[i] = b[i]
				}
			}
			got := *(*programs.SockSlot)(unsafe.Pointer(&mixed))
			whole := got == two[0] || got == two[1]
			if !whole && programs.ToSlot(key, programs.FromSlot(got)) == got {
				t.Errorf("%+v passes for whole: it is of %+v and %+v", got, two[0], two[1])
			}
		}
	}
}

// udpEcho answers each datagram with its own address.
func udpEcho(t *testing.T, addr string) {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(addr), from)
		}
	}()
}

func TestUnconnectedSocketStaysWithItsEndpointAndSeesTheService(t *testing.T) {
	b := openBackend(t, testOptions(t))
	endpoints := []string{"127.0.1.1:8080", "127.0.1.2:8080", "127.0.1.3:8080"}
	for _, e := range endpoints {
		udpEcho(t, e)
	}
	vip := frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf(endpoints...))
	all := snapshot(portOf("dns", dataplane.UDP, vip))
	mustSync(t, b, nil, all)
	client, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ask := func() string {
		t.Helper()
		buf := make([]byte, 64)
		if _, err := client.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(vip.Addr)); err != nil {
			t.Fatal(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := client.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != vip.Addr.String() {
			t.Errorf("the answer came from %s, want the Service's %s", from, vip.Addr)
		}
		return string(buf[:n])
	}
	first := ask()
	for range 20 {
		if again := ask(); again != first {
			t.Fatalf("the flow went from %s to %s", first, again)
		}
	}
	left := slices.DeleteFunc(slices.Clone(endpoints), func(e string) bool { return e == first })
	fewer := snapshot(portOf("dns", dataplane.UDP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf(left...))))
	mustSync(t, b, all, fewer)
	if again := ask(); again == first {
		t.Errorf("the flow still goes to %s, which was removed", first)
	}
}

func TestPeerNameIsTheService(t *testing.T) {
	b := openBackend(t, testOptions(t))
	l, err := net.Listen("tcp", "127.0.1.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	vip := frontendAt(dataplane.ClusterIP, "10.96.0.1:80", poolOf("127.0.1.1:8081"))
	mustSync(t, b, nil, snapshot(portOf("web", dataplane.TCP, vip)))
	for _, network := range []string{"10.96.0.1:80", "[::ffff:10.96.0.1]:80"} {
		c, err := net.DialTimeout("tcp", network, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != "10.96.0.1:80" {
			t.Errorf("getpeername after connect to %s says %s", network, got)
		}
		_ = c.Close()
	}
}

func TestAffinityHoldsWhileTheEndpointIsThere(t *testing.T) {
	b := openBackend(t, testOptions(t))
	var endpoints []string
	for i := range 20 {
		endpoints = append(endpoints, fmt.Sprintf("10.40.1.%d:8080", i+1))
	}
	sticky := func(endpoints ...string) *dataplane.Snapshot {
		p := portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf(endpoints...)))
		p.Affinity = time.Hour
		return snapshot(p)
	}
	addr := netip.MustParseAddrPort("10.96.0.1:53")
	prev := sticky(endpoints...)
	mustSync(t, b, nil, prev)
	first, err := connectFrom(t, b, onNode, addr)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(endpoints, func(a, b string) int { return netip.MustParseAddrPort(a).Compare(netip.MustParseAddrPort(b)) })
	for _, other := range slices.Clone(endpoints) { // all but the first go, one by one
		if other == first {
			continue
		}
		endpoints = slices.DeleteFunc(endpoints, func(e string) bool { return e == other })
		want := sticky(endpoints...)
		mustSync(t, b, prev, want)
		prev = want
		if got, err := connectFrom(t, b, onNode, addr); err != nil || got != first {
			t.Fatalf("with %d endpoints left the client went from %s to %s (%v)", len(endpoints), first, got, err)
		}
	}
	want := sticky("10.40.2.1:8080")
	mustSync(t, b, prev, want)
	if got, err := connectFrom(t, b, onNode, addr); err != nil || got != "10.40.2.1:8080" {
		t.Fatalf("the endpoint is gone, and the client got %s (%v)", got, err)
	}
}

// randomSnapshot has up to 12 Services of one or two frontends.
func randomSnapshot(random *rand.Rand) *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	pool := func() *dataplane.Pool {
		p := &dataplane.Pool{IfEmpty: dataplane.Verdict(random.IntN(2))}
		for i := range random.IntN(5) {
			p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 40, byte(i), byte(random.IntN(250))}), 8080), Local: random.IntN(2) == 0})
		}
		return p
	}
	for i := range 12 {
		if random.IntN(4) == 0 {
			continue
		}
		cluster, local := pool(), pool()
		f := []dataplane.Frontend{frontendAt(dataplane.ClusterIP, fmt.Sprintf("10.96.0.%d:80", i), cluster)}
		for k := range random.IntN(3) {
			lb := frontendAt(dataplane.LoadBalancer, fmt.Sprintf("10.97.%d.%d:80", k, random.IntN(12)*12+i), []*dataplane.Pool{cluster, local}[random.IntN(2)])
			lb.SNAT = dataplane.SNAT(random.IntN(4))
			if random.IntN(2) == 0 {
				lb.Inside = cluster
			}
			if random.IntN(3) == 0 {
				lb.Sources = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", random.IntN(4)))}
			}
			f = append(f, lb)
		}
		p := portOf(fmt.Sprintf("web-%d", i), dataplane.TCP, f...)
		p.Affinity = time.Duration(random.IntN(2)) * time.Minute
		ports = append(ports, p)
	}
	s := snapshot(ports...)
	if random.IntN(2) == 0 {
		s.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	}
	return s
}

// checkHolds sees that the kernel holds a Snapshot and nothing besides.
func checkHolds(t *testing.T, b *accelerated, want *dataplane.Snapshot) {
	t.Helper()
	o, err := b.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diffs := o.Differences(dataplane.Expect(want)); len(diffs) > 0 {
		t.Fatalf("the kernel is not as wanted: %s", strings.Join(diffs, "\n"))
	}
	h, err := b.sockets.maps.read()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(h.strayedFrontends) + len(h.strayedSlots) + len(h.damagedSlots); n > 0 {
		t.Fatalf("%d elements belong to nothing: %v %v", n, h.strayedFrontends, h.strayedSlots)
	}
	ports := 0
	for port := range want.Ports.All() {
		served, _ := b.sockets.served(port)
		if len(served.Frontends) == 0 || b.sockets.held.left.why[port.ID] == leftNoRoom {
			continue
		}
		ports++
		have := h.claim(served)
		if have == nil {
			t.Fatalf("%s is not in the maps", port.ID)
		}
		next, err := planFor(have, served, have.master.Id)
		if err != nil {
			t.Fatal(err)
		}
		var w writes
		w.change(have, next)
		if len(have.frontends) != len(next.frontends) || len(w.slots)+len(w.masters)+len(w.frontends) > 0 {
			t.Fatalf("%s is not as wanted: a repair would write %+v", port.ID, w)
		}
	}
	if len(h.plans) != 0 {
		t.Fatalf("the maps have %d Service ports besides the %d wanted", len(h.plans), ports)
	}
}

func TestRandomSyncs(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	random := rand.New(rand.NewPCG(3, 4))
	var prev *dataplane.Snapshot
	for i := range 60 { // a restart loads the programs, which takes seconds
		want := randomSnapshot(random)
		switch random.IntN(10) {
		case 0:
			prev = nil // an audit
		case 1:
			_ = b.Close() // a restart
			b, prev = openBackend(t, o), nil
		}
		if err := b.Sync(t.Context(), prev, want); err != nil {
			t.Fatalf("Sync %d: %v", i, err)
		}
		checkHolds(t, b, want)
		prev = want
	}
}

func TestNoConnectEverFailsWhileSyncsGoOn(t *testing.T) {
	b := openBackend(t, testOptions(t))
	stable := frontendAt(dataplane.ClusterIP, "10.96.0.1:53", nil)
	sets := [][]string{{"10.40.1.1:80", "10.40.1.2:80"}, {"10.40.2.1:80"}, {"10.40.1.2:80", "10.40.2.1:80", "10.40.3.1:80"}}
	worlds := make([]*dataplane.Snapshot, len(sets))
	allowed := map[string]bool{}
	for i, set := range sets {
		f := stable
		f.Pool = poolOf(set...)
		other := frontendAt(dataplane.LoadBalancer, "10.97.0.1:53", f.Pool)
		if i == 1 {
			other.Pool, other.Inside = poolOf(), f.Pool // shared pools part
		}
		worlds[i] = snapshot(portOf("web", dataplane.TCP, f, other))
		for _, e := range set {
			allowed[e] = true
		}
	}
	mustSync(t, b, nil, worlds[0])
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				to := []string{"10.96.0.1:53", "10.97.0.1:53"}[n%2]
				if got, err := connectHere(b, netip.MustParseAddrPort(to)); err != nil || !allowed[got] {
					t.Errorf("connect %d to %s got %q, %v", n, to, got, err)
					return
				}
			}
		})
	}
	for i := range 1000 {
		mustSync(t, b, worlds[i%3], worlds[(i+1)%3])
	}
	close(stop)
	clients.Wait()
}

// A Service port that does not fit the maps is served by the packet backend, and
// by sockets once there is room.
func TestFullMapLeavesJustTheServiceThatDoesNotFit(t *testing.T) {
	o := testOptions(t)
	o.MaxEndpoints = 4
	b := openBackend(t, o)
	small := portOf("small", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:80", poolOf("10.40.1.1:80", "10.40.1.2:80")))
	large := portOf("large", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.2:80", poolOf("10.40.1.1:80", "10.40.1.2:80", "10.40.1.3:80")))
	tiny := portOf("tiny", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.3:80", poolOf("10.40.1.1:80")))
	mustSync(t, b, nil, snapshot(small))
	mustSync(t, b, snapshot(small), snapshot(small, large, tiny))
	if got := b.Sockets().LeftPorts[leftNoRoom]; got != 1 {
		t.Errorf("%d Service ports are left to packets for lack of room, want 1", got)
	}
	checkHolds(t, b, snapshot(small, large, tiny))
	grown := portOf("small", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:80", poolOf("10.40.1.1:80", "10.40.1.2:80", "10.40.1.3:80", "10.40.1.4:80")))
	mustSync(t, b, snapshot(small, large, tiny), snapshot(grown, large, tiny)) // it was in the maps
	if got, err := connectFrom(t, b, onNode, grown.Frontends[0].Addr); err != nil || got != "" {
		t.Errorf("the Service that outgrew the maps still leads to %q, %v", got, err)
	}
	checkHolds(t, b, snapshot(grown, large, tiny))
	mustSync(t, b, snapshot(grown, large, tiny), snapshot(tiny)) // what goes makes room
	mustSync(t, b, snapshot(tiny), snapshot(large, tiny))
	if left := b.Sockets().LeftPorts; len(left) != 0 {
		t.Errorf("left to packets are still %v", left)
	}
	checkHolds(t, b, snapshot(large, tiny))
}

func TestRestartWithOtherSizesMovesToNewMaps(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	p := portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:80")))
	p.Affinity = time.Hour
	mustSync(t, b, nil, snapshot(p))
	addr := netip.MustParseAddrPort("10.96.0.1:53")
	_ = b.Close()
	o.MaxEndpoints, o.MaxAffinity = 1000, 1000
	for range 2 { // the second start finds what the first one left
		b = openBackend(t, o)
		if _, err := connectFrom(t, b, onNode, addr); err != nil {
			t.Errorf("before the first Sync: %v", err)
		}
		mustSync(t, b, nil, snapshot(p))
		checkHolds(t, b, snapshot(p))
		if got, err := connectFrom(t, b, onNode, addr); err != nil || got != "10.40.1.1:80" {
			t.Errorf("after it: got %q, %v", got, err)
		}
		_ = b.Close()
	}
}

// What the old programs note on the old maps until they are replaced is not lost.
func TestRestartWithOtherSizesMovesWhatIsNotedUntilTheFirstSync(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	mustSync(t, b, nil, snapshot())
	_ = b.Close()
	old, err := ebpf.LoadPinnedMap(filepath.Join(b.sockets.programs.Dirs.Maps, "affinity"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	entry := func(n byte) (key, value []byte) {
		key, value = make([]byte, old.KeySize()), make([]byte, old.ValueSize())
		key[0], value[0] = n, n
		return key, value
	}
	o.MaxAffinity = 1000
	note := func(n byte) {
		if err := old.Put(entry(n)); err != nil {
			t.Fatal(err)
		}
	}
	note(1)
	b = openBackend(t, o)
	note(2) // a client that comes before the first Sync
	mustSync(t, b, nil, snapshot())
	for n := byte(1); n <= 2; n++ {
		key, want := entry(n)
		if have, err := b.sockets.programs.Maps["affinity"].LookupBytes(key); err != nil || !bytes.Equal(have, want) {
			t.Errorf("entry %d: the new map has %x, %v", n, have, err)
		}
	}
	if b.sockets.programs.Maps["affinity"].MaxEntries() == old.MaxEntries() {
		t.Error("the map was not replaced")
	}
}

// If a hook cannot be replaced, the next Sync tries again. Meanwhile the replaced
// ones note in the new maps and the others in the old ones: the newer note stays.
func TestNotesOfAnAttachThatFailedStay(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	mustSync(t, b, nil, snapshot())
	_ = b.Close()
	old, err := ebpf.LoadPinnedMap(filepath.Join(b.sockets.programs.Dirs.Maps, programs.SockMapAffinity), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	note := func(in *ebpf.Map, netns, used uint64) {
		t.Helper()
		if err := in.Put(programs.SockAffinityKey{Netns: netns}, programs.SockAffinity{Used: used}); err != nil {
			t.Fatal(err)
		}
	}
	note(old, 1, 10)
	note(old, 2, 10)
	pin := filepath.Join(b.sockets.programs.Dirs.Links, "sock_sendmsg6")
	if err := errors.Join(os.Remove(pin), os.Mkdir(pin, 0o700)); err != nil {
		t.Fatal(err)
	}
	o.MaxAffinity = 1000
	b = openBackend(t, o)
	mustSync(t, b, nil, snapshot())
	if b.sockets.programs.Attached || b.trouble.Load() == nil {
		t.Fatal("the hook was replaced")
	}
	note(b.sockets.programs.Maps[programs.SockMapAffinity], 1, 20)
	note(old, 2, 30)
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	mustSync(t, b, nil, snapshot())
	if !b.sockets.programs.Attached {
		t.Fatalf("the hook was not replaced: %v", *b.trouble.Load())
	}
	for netns, want := range map[uint64]uint64{1: 20, 2: 30} {
		var have programs.SockAffinity
		if err := b.sockets.programs.Maps[programs.SockMapAffinity].Lookup(programs.SockAffinityKey{Netns: netns}, &have); err != nil || have.Used != want {
			t.Errorf("client %d: the note is of %d, %v; want %d", netns, have.Used, err, want)
		}
	}
}

func TestAuditPutsBackADetachedHook(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	want := snapshot(portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:80"))))
	mustSync(t, b, nil, want)
	path := filepath.Join(b.sockets.programs.Dirs.Links, "sock_connect4")
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if o, err := b.Observe(t.Context()); err != nil || len(o.Other) == 0 {
		t.Errorf("Observe says nothing of a detached hook: %v", err)
	}
	mustSync(t, b, nil, want)
	if got, err := connectFrom(t, b, onNode, netip.MustParseAddrPort("10.96.0.1:53")); err != nil || got != "10.40.1.1:80" {
		t.Errorf("after a repair connect got %q, %v", got, err)
	}
}

// A map whose pin was removed or replaced is found, and pinned again.
func TestAuditPutsBackAPin(t *testing.T) {
	b := openBackend(t, testOptions(t))
	want := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"))
	mustSync(t, b, nil, want)
	path := filepath.Join(b.sockets.programs.Dirs.Maps, programs.SockMapSlots)
	for _, replace := range []bool{false, true} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if replace {
			other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 1, ValueSize: 1, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(other.Pin(path), other.Close()); err != nil {
				t.Fatal(err)
			}
		}
		o, err := b.Observe(t.Context())
		if err != nil || len(o.Other) != 1 || !strings.Contains(o.Other[0], programs.SockMapSlots) {
			t.Errorf("Observe says %q, %v", o.Other, err)
		}
		mustSync(t, b, nil, want)
		if o, err := b.Observe(t.Context()); err != nil || len(o.Other) > 0 {
			t.Errorf("after a repair Observe says %q, %v", o.Other, err)
		}
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	mustSync(t, b, nil, snapshot(portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:53", poolOf("10.40.1.1:80")))))
	for range 2 {
		if err := testDriver(o).Cleanup(t.Context(), testConfig()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(o.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", o.PinDir, err)
	}
	if got, err := connectFrom(t, b, onNode, netip.MustParseAddrPort("10.96.0.1:53")); err != nil || got != "" {
		t.Errorf("the hook still translates: %q, %v", got, err)
	}
}

func TestProbe(t *testing.T) {
	o := testOptions(t)
	if err := testDriver(o).Probe(t.Context(), testConfig()); err != nil {
		t.Error(err)
	}
	o.PinDir = t.TempDir()
	if err := testDriver(o).Probe(t.Context(), testConfig()); !errors.Is(err, dataplane.ErrUnsupported) {
		t.Errorf("a pin directory that is no bpf file system: %v", err)
	}
}

// TestVerifyFindsEachMissingElement removes elements of every map that says what
// to forward, one at a time: each is found and put back.
func TestVerifyFindsEachMissingElement(t *testing.T) {
	o := testOptions(t)
	b := openBackend(t, o)
	random := rand.New(rand.NewPCG(7, 8))
	want := randomSnapshot(random)
	want.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	want.Node = &dataplane.Node{
		NodePorts: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")},
		LocalPods: dataplane.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/16")}},
	}
	mustSync(t, b, nil, want)
	checkHolds(t, b, want)
	for name, m := range map[string]*ebpf.Map{
		"frontends": b.sockets.maps.frontends, "services": b.sockets.maps.services, "slots": b.sockets.maps.slots,
		"node_addresses": b.sockets.maps.addresses,
	} {
		for range 3 {
			keys := keysIn(t, m)
			if len(keys) == 0 {
				t.Fatalf("map %s is empty", name)
			}
			if err := m.Delete(keys[random.IntN(len(keys))]); err != nil {
				t.Fatal(err)
			}
			o, err := b.Observe(t.Context())
			if err != nil || len(o.Other) == 0 || !o.Whole {
				t.Errorf("map %s lacks an element, and Observe says %+v, %v", name, o, err)
			}
			mustSync(t, b, nil, want)
			checkHolds(t, b, want)
		}
	}
}

// keysIn are all keys of a map, as bytes.
func keysIn(t *testing.T, m *ebpf.Map) [][]byte {
	t.Helper()
	var keys [][]byte
	var key, value []byte
	all := m.Iterate()
	for all.Next(&key, &value) {
		keys = append(keys, slices.Clone(key))
	}
	if err := all.Err(); err != nil {
		t.Fatal(err)
	}
	return keys
}

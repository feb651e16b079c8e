package ebpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
)

// TestUsers: where a socket's Service is not known, an endpoint that another
// Service has is not gone. (Linux before 6.5; its packets go through the
// conformance table in a virtual machine.)
func TestUsers(t *testing.T) {
	serving := func(name string, endpoints ...string) *dataplane.ServicePort {
		p := &dataplane.ServicePort{ID: dataplane.PortID{Namespace: "test", Service: name, Protocol: dataplane.TCP}}
		for _, e := range endpoints {
			p.Serving = append(p.Serving, dataplane.Endpoint{Addr: netip.MustParseAddrPort(e)})
		}
		return p
	}
	const one, two = "127.0.2.1:8080", "127.0.2.2:8080"
	gone := func(u *users) (left []string) {
		for _, e := range u.without([]terminate.Endpoint{
			{Protocol: dataplane.TCP, Addr: netip.MustParseAddrPort(one)}, {Protocol: dataplane.TCP, Addr: netip.MustParseAddrPort(two)},
		}) {
			left = append(left, e.Addr.String())
		}
		return left
	}
	u := &users{}
	if got := gone(u); len(got) != 2 {
		t.Errorf("before the first Sync, gone are %v; want both", got)
	}
	a, b := serving("a", one, two), serving("b", two)
	u.start(snapshot(a, b).Ports)
	for _, step := range []struct {
		what     string
		old, cur *dataplane.ServicePort
		want     []string
	}{
		{"both Services are there", nil, nil, nil},
		{"one loses both endpoints", a, serving("a"), []string{one}},
		{"the other is deleted", b, nil, []string{one, two}},
		{"a new one has the first", nil, serving("c", one), []string{two}},
	} {
		u.change(step.old, -1)
		u.change(step.cur, 1)
		if got := gone(u); !slices.Equal(got, step.want) {
			t.Errorf("%s: gone are %v; want %v", step.what, got, step.want)
		}
	}
	u.start(snapshot(b).Ports)
	if got := gone(u); !slices.Equal(got, []string{one}) {
		t.Errorf("counted afresh, gone are %v; want %s", got, one)
	}
}

// A Service loses all of its endpoints but one. TCP clients learn what no other
// would tell them, that their pod is gone, and nothing else.
func TestTCPClientsLearnThatTheirPodIsGone(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		testPodsAreGone(t, mustSync)
	})
	t.Run("after Syncs that failed", func(t *testing.T) {
		testPodsAreGone(t, func(t testing.TB, b *accelerated, prev, want *dataplane.Snapshot) {
			t.Helper()
			base := b.Backend.(*memory)
			base.fails = errors.New("the kernel is busy")
			for _, prev := range []*dataplane.Snapshot{prev, nil} {
				if err := b.Sync(t.Context(), prev, want); !errors.Is(err, base.fails) {
					t.Fatalf("Sync returned %v", err)
				}
			}
			base.fails = nil
			mustSync(t, b, nil, want)
		})
	})
}

func testPodsAreGone(t *testing.T, sync func(t testing.TB, b *accelerated, prev, want *dataplane.Snapshot)) {
	t.Helper()
	b := openBackend(t, testOptions(t))
	service := func(name, frontend, endpoint string, ending ...string) *dataplane.ServicePort {
		p := portOf(name, dataplane.TCP, frontendAt(dataplane.ClusterIP, frontend, poolOf(endpoint)))
		for _, e := range ending {
			p.Ending = append(p.Ending, netip.MustParseAddrPort(e))
		}
		return p
	}
	before := snapshot(
		service("gone", "10.96.0.9:80", "127.0.2.1:8080", "127.0.2.1:8080"),
		service("closed", "10.96.0.10:80", "127.0.2.2:8080", "127.0.2.2:8080"),
		service("left", "10.96.0.11:80", "127.0.2.3:8080"),
		service("ending", "10.96.0.12:80", "127.0.2.4:8080", "127.0.2.4:8080"),
		service("deleted", "10.96.0.13:80", "127.0.2.5:8080", "127.0.2.5:8080"),
	)
	after := snapshot(
		service("gone", "10.96.0.9:80", "127.0.2.9:8080"),
		service("closed", "10.96.0.10:80", "127.0.2.9:8080"),
		service("left", "10.96.0.11:80", "127.0.2.9:8080"),
		service("ending", "10.96.0.12:80", "127.0.2.9:8080", "127.0.2.4:8080"),
	)
	mustSync(t, b, nil, before)
	held := map[string]net.Conn{}
	for _, tc := range []struct{ name, frontend, endpoint string }{
		{"gone", "10.96.0.9:80", "127.0.2.1:8080"}, {"closed", "10.96.0.10:80", "127.0.2.2:8080"}, {"left", "10.96.0.11:80", "127.0.2.3:8080"},
		{"ending", "10.96.0.12:80", "127.0.2.4:8080"}, {"deleted", "10.96.0.13:80", "127.0.2.5:8080"},
	} {
		l, err := net.Listen("tcp", tc.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		c, err := net.Dial("tcp", tc.frontend)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		if tc.name == "closed" {
			if _, err := server.Write([]byte("bye")); err != nil {
				t.Fatal(err)
			}
			_ = server.Close()
		}
		held[tc.name] = c
	}
	sync(t, b, before, after)
	time.Sleep(enderDelay) // then those that learn it learn it soon
	for name, want := range map[string]error{
		"gone": unix.ECONNABORTED, "closed": nil, "left": os.ErrDeadlineExceeded, "ending": os.ErrDeadlineExceeded, "deleted": os.ErrDeadlineExceeded,
	} {
		c, patience := held[name], 500*time.Millisecond
		if want != nil && !errors.Is(want, os.ErrDeadlineExceeded) {
			patience = 20 * time.Second // it takes as long as it takes
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(c)
		if !errors.Is(err, want) || (want == nil) != (string(text) == "bye") {
			t.Errorf("%s: the client reads %q, %v; want %v", name, text, err, want)
		}
	}
}

// A socket that was connected to a Service and is connected elsewhere now is not
// ended with the Service's endpoint. One that is still connected to it is.
func TestSocketsThatWentElsewhereGoOn(t *testing.T) {
	const endpoint, elsewhere = "127.0.2.1:8080", "127.0.2.2:8080"
	b := openBackend(t, testOptions(t))
	service := func(protocol dataplane.Protocol, endpoint string, ending ...netip.AddrPort) *dataplane.ServicePort {
		p := portOf("web", protocol, frontendAt(dataplane.ClusterIP, "10.96.0.9:80", poolOf(endpoint)))
		p.Ending = ending
		return p
	}
	ends := netip.MustParseAddrPort(endpoint)
	before := snapshot(service(dataplane.TCP, endpoint, ends), service(dataplane.UDP, endpoint, ends))
	after := snapshot(service(dataplane.TCP, "127.0.2.9:8080"), service(dataplane.UDP, "127.0.2.9:8080"))
	mustSync(t, b, nil, before)
	for _, at := range []string{endpoint, elsewhere} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		udpEcho(t, at)
	}
	connected := func(kind int) int {
		t.Helper()
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 96, 0, 9}})
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	moved := func(kind int) int {
		t.Helper()
		fd := connected(kind)
		disconnect(t, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 2, 2}}); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	stays := connected(unix.SOCK_STREAM)
	// The note of the second is still there, as if it had left the cgroup meanwhile.
	sockets := map[string]int{"TCP": moved(unix.SOCK_STREAM), "TCP, noted": moved(unix.SOCK_STREAM), "UDP": moved(unix.SOCK_DGRAM)}
	var note programs.SockPeer
	if err := b.sockets.programs.Maps[programs.SockMapPeers].Lookup(uint32(stays), &note); err != nil {
		t.Fatal(err)
	}
	if err := b.sockets.programs.Maps[programs.SockMapPeers].Put(uint32(sockets["TCP, noted"]), note); err != nil {
		t.Fatal(err)
	}
	mustSync(t, b, before, after)
	learns := unix.Timeval{Sec: 20} // it takes as long as it takes
	for _, fd := range []int{stays, sockets["UDP"]} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &learns); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.Read(stays, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the socket that stayed reads %v; want %v", err, unix.ECONNABORTED)
	}
	for name, fd := range sockets {
		if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			t.Errorf("%s: the socket that went elsewhere has error %v, %v", name, unix.Errno(errno), err)
		}
		if _, err := unix.Getpeername(fd); err != nil {
			t.Errorf("%s: the socket that went elsewhere: getpeername says %v", name, err)
		}
		if _, err := unix.Write(fd, []byte("?")); err != nil {
			t.Errorf("%s: the socket that went elsewhere: write says %v", name, err)
		}
	}
	answer := make([]byte, 64)
	if n, err := unix.Read(sockets["UDP"], answer); err != nil || string(answer[:n]) != elsewhere {
		t.Errorf("the UDP socket reads %q, %v; want %s", answer[:n], err, elsewhere)
	}
}

// If no socket was ever connected to an endpoint that is gone, nobody looks for
// one: that would cost a walk over all sockets in each network namespace.
func TestNobodyLooksForSocketsThatNeverWere(t *testing.T) {
	b := openBackend(t, testOptions(t))
	mustSync(t, b, nil, snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")))
	id := b.sockets.held.ports[portOf("a", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:80", nil)).ID].master.Id
	gone := func() []terminate.Endpoint {
		return []terminate.Endpoint{{Service: id, Protocol: dataplane.TCP, Addr: netip.MustParseAddrPort("10.40.1.1:80")}}
	}
	blind := &ender{connected: b.sockets.programs.Maps[programs.SockMapConnected]} // it would fall over a nil Terminator
	if n, err := blind.terminate(gone()); n != 0 || err != nil {
		t.Errorf("ended %d sockets, %v", n, err)
	}
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	seeing := &ender{end: b.sockets.ender.end, connected: blind.connected}
	if _, err := seeing.terminate(gone()); err != nil {
		t.Error(err)
	}
	if n, err := blind.terminate(gone()); n != 0 || err != nil { // and it is forgotten
		t.Errorf("ended %d sockets, %v", n, err)
	}
}

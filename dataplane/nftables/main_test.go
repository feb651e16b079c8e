package nftables

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestMain runs all tests in a network namespace of their own: the backend
// programs the one of its process.
func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

// opened is a backend for some families whose tables go with the test.
func opened(t testing.TB, families ...dataplane.Family) *backend {
	t.Helper()
	kerneltest.NeedMain(t)
	b, err := open(dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: families, MasqueradeBit: 14})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.Close()
		if err := cleanup(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func snapshot(ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	return &dataplane.Snapshot{Revision: 1, Node: &dataplane.Node{Name: "node-a"}, Ports: dataplane.MakePorts(ports...)}
}

// services are n Services of one TCP port with a ClusterIP and so many endpoints.
func services(n, endpoints int) []*dataplane.ServicePort {
	out := make([]*dataplane.ServicePort, n)
	for i := range out {
		p := &dataplane.Pool{}
		for e := range endpoints {
			k := i*endpoints + e
			p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 64 + byte(k>>16), byte(k >> 8), byte(k)}), 8080)})
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 32 + byte(i>>16), byte(i >> 8), byte(i)}), 80)
		out[i] = port(fmt.Sprintf("web-%05d", i), frontend(dataplane.ClusterIP, addr.String(), p, dataplane.SNATNonPods))
	}
	return out
}

// withoutLast is a Snapshot in which one ServicePort has an endpoint less.
func withoutLast(s *dataplane.Snapshot) *dataplane.Snapshot {
	for p := range s.Ports.All() {
		less, f := *p, p.Frontends[0]
		f.Pool = &dataplane.Pool{Endpoints: f.Pool.Endpoints[:len(f.Pool.Endpoints)-1]}
		less.Frontends = []dataplane.Frontend{f}
		next := *s
		next.Ports = s.Ports.With([]*dataplane.ServicePort{&less}, nil)
		return &next
	}
	return s
}

// serveUDP echoes datagrams on this namespace's loopback until the test ends, and
// returns a Service's address that routes there, too.
func serveUDP(t *testing.T) (server, service netip.AddrPort) {
	t.Helper()
	for _, args := range []string{"link set lo up", "address replace 10.0.0.1/32 dev lo", "route replace 10.96.0.0/16 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), netip.MustParseAddrPort("10.96.0.1:80")
}

// askUDP asks from a new socket each time, until it is stopped or has no answer.
func askUDP(to netip.AddrPort, stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1)}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(make([]byte, 8))
		}
		_ = conn.Close()
		if err != nil {
			return fmt.Errorf("request %d: %w", n, err)
		}
	}
}

package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// TestPicksAndAffinity sends packets through the rules that do without IPVS:
// those of the node to a Service that has a pool for it, here one in which each
// endpoint is an address of the node. It needs no IPVS.
func TestPicksAndAffinity(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		four := []string{"192.0.2.1:8080", "192.0.2.2:8080", "192.0.2.3:8080", "192.0.2.4:8080"}
		for _, a := range four {
			n.serve(a)
		}
		service := func(affinity time.Duration, endpoints ...string) *dataplane.ServicePort {
			f := frontend(dataplane.LoadBalancer, affinityVIP, pool("drop"), dataplane.SNATNode)
			f.Inside = pool(endpoints...)
			p := port("web", f)
			p.ID.Protocol, p.Affinity = dataplane.UDP, affinity
			return p
		}
		n.sync(service(0, four...))
		seen := map[string]bool{}
		for range 60 {
			seen[n.ask()] = true
		}
		if len(seen) != len(four) {
			t.Errorf("without affinity 60 flows reached %v", seen)
		}

		n.sync(service(2*time.Second, four...))
		first := n.ask()
		for range 20 { // the last of them after more than the timeout
			time.Sleep(150 * time.Millisecond)
			if got := n.ask(); got != first {
				t.Fatalf("a client of %q got %q", first, got)
			}
		}
		moved := false
		for range 4 { // by chance it is the same again, with a probability of 1/256
			time.Sleep(2200 * time.Millisecond)
			moved = moved || n.ask() != first
		}
		if !moved {
			t.Error("affinity does not end")
		}

		n.sync(service(time.Hour, four...))
		first = n.ask()
		var others []string
		for _, a := range four {
			if a != first {
				others = append(others, a)
			}
		}
		n.sync(service(time.Hour, others...))
		second := n.ask()
		if second == first || second == "" {
			t.Errorf("without its endpoint %s a client got %q", first, second)
		}
		for range 10 {
			if got := n.ask(); got != second {
				t.Fatalf("a client of %q got %q", second, got)
			}
		}
		n.sync(service(time.Hour, four...))
		if got := n.ask(); got != second {
			t.Errorf("when its first endpoint came back, a client of %q got %q", second, got)
		}
	})
}

// TestVerdicts: what nobody can take is rejected at once, or dropped, from the
// node itself, unless another proxy translates it. It needs no IPVS.
func TestVerdicts(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		n.sync(
			port("empty", frontend(dataplane.ClusterIP, "10.96.0.1:80", pool(), dataplane.SNATNonPods)),
			port("drops", frontend(dataplane.ClusterIP, "10.96.0.2:80", pool("drop"), dataplane.SNATNonPods)),
			port("empty6", frontend(dataplane.ClusterIP, "[fd96::1]:80", pool(), dataplane.SNATNonPods)),
		)
		other, err := net.Listen("tcp", "198.51.100.1:8081")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Close() }()
		for priority, at := range map[int]string{-90: "10.96.0.1", -110: "10.96.0.8"} { // after ours, and before
			rules := fmt.Sprintf("table ip other%d { chain out { type nat hook output priority %d; ip daddr %s tcp dport 82 dnat to 198.51.100.1:8081; }; }", -priority, priority, at)
			if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
				t.Fatalf("nft %s: %v: %s", rules, err, out)
			}
		}
		for _, tc := range []struct{ to, want string }{
			{"10.96.0.1:82", "connected"}, {"10.96.0.8:82", "connected"}, {"10.96.0.8:83", "silent"},
			{"10.96.0.1:80", "refused"}, {"10.96.0.1:81", "refused"}, {"10.96.0.2:80", "silent"},
			{"[fd96::1]:80", "refused"}, {"[fd96::1]:81", "refused"}, {"10.96.0.9:80", "silent"},
		} {
			start := time.Now()
			conn, err := net.DialTimeout("tcp", tc.to, 700*time.Millisecond)
			got := "refused"
			var late net.Error
			switch {
			case err == nil:
				_ = conn.Close()
				got = "connected"
			case errors.As(err, &late) && late.Timeout():
				got = "silent"
			}
			if got != tc.want || got == "refused" && time.Since(start) > 500*time.Millisecond {
				t.Errorf("%s: %s after %s, wanted %s", tc.to, got, time.Since(start), tc.want)
			}
		}
	})
}

// testNode is a network namespace with our tables and routes, and no IPVS.
type testNode struct {
	t      *testing.T
	tables []*nft.Table
	routes *routes
	counts counts
	port   int // of the last ask, from 20,000
}

func newNode(t *testing.T) *testNode {
	t.Helper()
	out, err := exec.Command("sh", "-c", "ip link set lo up; ip link add out type veth peer name away; ip link set out up; ip link set away up; "+
		"ip addr add 198.51.100.1/24 dev out; ip addr add 2001:db8:1::1/64 dev out nodad; ip route add default dev out; ip neigh add 198.51.100.2 lladdr 02:00:00:00:00:01 dev out").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := &testNode{t: t}
	if n.routes, err = openRoutes(&n.counts); err != nil {
		t.Fatal(err)
	}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		n.tables = append(n.tables, newTable(f, &n.counts))
	}
	return n
}

// sync writes tables and routes as a full Sync does.
func (n *testNode) sync(ports ...*dataplane.ServicePort) {
	n.t.Helper()
	k := &kernel{routes: n.routes, counts: &n.counts}
	for _, t := range n.tables {
		on := &node{family: t.Family, mark: 1 << 14, scheduler: "rr"}
		if t.Family == dataplane.IPv4 {
			on.ranges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
		}
		held, err := (&common{}).ofFamily(k, t)
		if err != nil {
			n.t.Fatal(err)
		}
		d, err := whole(t, on, affinity.NewIDs().Of, held, localnet.Off)
		if err != nil {
			n.t.Fatal(err)
		}
		d.wantAll(dataplane.MakePorts(ports...))
		if err := errors.Join(t.Write(&d.First, nil), t.Write(&d.Last, nil), target{routes: k.routes}.writeRoutes(d)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// serve answers on UDP at an address that it gives to the node, with the address.
func (n *testNode) serve(addr string) {
	n.t.Helper()
	a := netip.MustParseAddrPort(addr)
	if out, err := exec.Command("ip", "addr", "add", a.Addr().String()+"/32", "dev", "lo").CombinedOutput(); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 16)
		for {
			_, from, err := conn.ReadFromUDP(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDP([]byte(addr), from)
		}
	}()
}

// affinityVIP is the Service that these tests ask.
const affinityVIP = "10.96.0.10:53"

// ask sends it one packet from a new socket and gives the answer, or "". Its
// port is a new one: from an earlier one's it would be of that flow.
func (n *testNode) ask() string {
	n.t.Helper()
	n.port++
	conn, err := (&net.Dialer{LocalAddr: &net.UDPAddr{Port: 20000 + n.port}}).Dial("udp", affinityVIP)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 64)
	if _, err := conn.Write([]byte("who")); err != nil {
		return ""
	}
	k, err := conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:k])
}

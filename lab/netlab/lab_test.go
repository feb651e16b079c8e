package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

func TestMain(m *testing.M) {
	Main(nil)
	os.Exit(m.Run())
}

// needRoot ends a test that cannot run here; where the kernel is required, as
// a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if err := RequireRoot(); err != nil {
		kerneltest.Unable(t, err)
	}
}

func newLab(t *testing.T, cfg Config) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Everyone reaches everyone, in both families and all protocols, and is seen
// with its own address.
func TestReach(t *testing.T) {
	l := newLab(t, Config{})
	const port = 8080
	servers := []*Host{l.Host("a1"), l.Host("b1"), l.Host("node-b"), l.Host("outside")}
	clients := []*Host{l.Host("a1"), l.Host("a2"), l.Host("node-a"), l.Host("b2"), l.Host("outside")}
	for _, protocol := range []string{TCP, UDP, SCTP} {
		for _, s := range servers {
			if _, err := s.Serve(protocol, port); err != nil {
				t.Fatal(err)
			}
			for _, c := range clients {
				for _, version := range []int{4, 6} {
					to := netip.AddrPortFrom(s.Addr(version), port)
					a, err := c.Ask(Request{Protocol: protocol, To: to})
					if err != nil {
						t.Fatal(err)
					}
					if a.Outcome != Answered || a.Server != s.Name || a.Source.Addr() != c.Addr(version) {
						t.Errorf("%s from %s to %s (%s): %s", protocol, c.Name, s.Name, to, a)
					}
				}
			}
		}
	}
}

// How a request fails is told apart.
func TestOutcomes(t *testing.T) {
	l := newLab(t, Config{})
	server, client := l.Host("b1"), l.Host("a1")
	if _, err := l.Host("b1").Run(t.Context(), "iptables", "-A", "INPUT", "-p", "sctp", "-j", "REJECT"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host("b1").Run(t.Context(), "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "2", "-j", "REJECT"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host("b1").Run(t.Context(), "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "3", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Run(t.Context(), "iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "4", "-j", "REJECT"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Run(t.Context(), "iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "5", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, protocol string
		to             netip.AddrPort
		want           Outcome
	}{
		{"TCP, nobody listens", TCP, netip.AddrPortFrom(server.Addr(4), 1), Refused},
		{"TCP IPv6, nobody listens", TCP, netip.AddrPortFrom(server.Addr(6), 1), Refused},
		{"TCP, rejected by ICMP", TCP, netip.AddrPortFrom(server.Addr(4), 2), Refused},
		{"TCP, dropped", TCP, netip.AddrPortFrom(server.Addr(4), 3), TimedOut},
		{"UDP, nobody listens", UDP, netip.AddrPortFrom(server.Addr(4), 1), Refused},
		{"UDP IPv6, nobody listens", UDP, netip.AddrPortFrom(server.Addr(6), 1), Refused},
		{"UDP, rejected on the client's host", UDP, netip.AddrPortFrom(server.Addr(4), 4), Refused},
		{"UDP, dropped on the client's host", UDP, netip.AddrPortFrom(server.Addr(4), 5), TimedOut},
		{"SCTP, rejected by ICMP", SCTP, netip.AddrPortFrom(server.Addr(4), 1), Refused},
		{"an address that the router does not know", TCP, netip.MustParseAddrPort("10.96.0.1:80"), Unreachable},
		{"the same, UDP IPv6", UDP, netip.MustParseAddrPort("[fd96::1]:80"), Unreachable},
	} {
		a, err := client.Ask(Request{Protocol: test.protocol, To: test.to, Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if a.Outcome != test.want {
			t.Errorf("%s: %s, want %s", test.name, a, test.want)
		}
	}
}

// What a host without SCTP said of an earlier probe does not end a later one:
// raw sockets get each other's ICMP errors.
func TestLateRefusal(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Pods: 2})
	server, client := l.Host("a1"), l.Host("a2")
	if _, err := server.Serve(SCTP, 80); err != nil {
		t.Fatal(err)
	}
	late := make([]byte, 8+40+12) // the refusal, the IPv6 header and the SCTP header that it is about
	late[0], late[1] = 4, 1       // parameter problem: unrecognized next header
	late[8], late[8+6] = 6<<4, unix.IPPROTO_SCTP
	copy(late[8+8:], client.Addr(6).AsSlice())
	copy(late[8+24:], server.Addr(6).AsSlice())
	done, sent := make(chan struct{}), make(chan error, 1)
	go func() {
		sent <- server.Do(func() error {
			c, err := net.Dial("ip6:ipv6-icmp", client.Addr(6).String())
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			for n := 0; n < 1_000_000; n++ {
				select {
				case <-done:
					return nil
				default:
					_, err = c.Write(late)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	for range 100 {
		a, err := client.Ask(Request{Protocol: SCTP, To: netip.AddrPortFrom(server.Addr(6), 80)})
		if err != nil || a.Outcome != Answered {
			t.Errorf("%s, %v", a, err)
		}
	}
	close(done)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// A source that a request asks for is what the server sees.
func TestSource(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Pods: 2})
	server, client := l.Host("a1"), l.Host("a2")
	for i, protocol := range []string{TCP, UDP, SCTP} {
		if _, err := server.Serve(protocol, 80); err != nil {
			t.Fatal(err)
		}
		from := netip.AddrPortFrom(client.Addr(4), uint16(4001+i))
		a, err := client.Ask(Request{Protocol: protocol, To: netip.AddrPortFrom(server.Addr(4), 80), From: from})
		if err != nil {
			t.Fatal(err)
		}
		if a.Source != from {
			t.Errorf("%s from %s: %s", protocol, from, a)
		}
	}
}

// A load goes on while the server goes away and comes back, and counts it; a
// held connection does not come back.
func TestLoad(t *testing.T) {
	l := newLab(t, Config{})
	server, client := l.Host("b1"), l.Host("a1")
	s, err := server.Serve(TCP, 80)
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Protocol: TCP, To: netip.AddrPortFrom(server.Addr(6), 80), Timeout: 300 * time.Millisecond}
	if a, err := client.Fetch(r, 1<<20); err != nil || a.Outcome != Answered {
		t.Errorf("fetching 1 MiB: %s, %v", a, err)
	}
	if a, err := client.Push(r, 1<<20); err != nil || a.Outcome != Answered {
		t.Errorf("pushing 1 MiB: %s, %v", a, err)
	}
	load, err := client.Load(r, 2, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	held, err := client.Hold(r, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	for _, one := range []*Load{load, held} {
		if sum, err := one.Sum(); err != nil || sum.Failed != 0 || sum.ByServer["b1"] < 5 {
			t.Errorf("while the server is there: %s, %v", sum, err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	for name, one := range map[string]*Load{"load": load, "held connection": held} {
		sum, err := one.Stop()
		if err != nil || sum.Failed == 0 {
			t.Errorf("%s after the server went: %s, %v", name, sum, err)
		}
	}
}

// A lost SYN shows in a load, though TCP gets over it.
// Datagrams of any size come back, also where a way is too narrow for them.
func TestLargeDatagrams(t *testing.T) {
	l := newLab(t, Config{Pods: 1})
	server, client := l.Host("b1"), l.Host("outside")
	if _, err := server.Serve(UDP, 53); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Router().SetMTU("node-b", 1300), l.Host("node-b").SetMTU("eth0", 1300)); err != nil {
		t.Fatal(err)
	}
	for _, version := range []int{4, 6} {
		for _, size := range []int{0, 1000, 4000, 60000} {
			r := Request{Protocol: UDP, To: netip.AddrPortFrom(server.Addr(version), 53), Size: size, Timeout: time.Second}
			var a Answer
			for try := 0; try < 3 && a.Outcome != Answered; try++ { // each side may lose one that teaches it the path's MTU
				var err error
				if a, err = client.Ask(r); err != nil {
					t.Fatal(err)
				}
			}
			if a.Outcome != Answered {
				t.Errorf("datagrams of %d bytes over IPv%d: %s", size, version, a)
			}
		}
	}
}

func TestLostSYN(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Pods: 2})
	server, client := l.Host("a1"), l.Host("a2")
	if _, err := server.Serve(TCP, 80); err != nil {
		t.Fatal(err)
	}
	drop := []string{"INPUT", "-p", "tcp", "--syn", "--dport", "80", "-m", "statistic", "--mode", "nth", "--every", "1000", "--packet", "0", "-j", "DROP"}
	if _, err := server.Run(t.Context(), "iptables", append([]string{"-A"}, drop...)...); err != nil {
		t.Fatal(err)
	}
	load, err := client.Load(Request{Protocol: TCP, To: netip.AddrPortFrom(server.Addr(4), 80), Timeout: 5 * time.Second}, 1, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(1300 * time.Millisecond)
	sum, err := load.Stop()
	if err != nil || sum.Failed != 1 || !sum.First.Resent {
		t.Errorf("with the first SYN dropped: %s, %v; want one failure, a SYN sent again", sum, err)
	}
}

// Announced addresses are known to packets from outside and to no others.
func TestAnnounce(t *testing.T) {
	l := newLab(t, Config{})
	vip := netip.MustParseAddr("192.0.2.1")
	if err := l.Announce(netip.MustParsePrefix("192.0.2.0/24"), l.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	if err := l.Nodes[1].AddAddress("lo", hostPrefix(vip)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Nodes[1].Serve(TCP, 80, vip); err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]Outcome{"outside": Answered, "a1": Unreachable} {
		if a, err := l.Host(client).Ask(Request{Protocol: TCP, To: netip.AddrPortFrom(vip, 80)}); err != nil || a.Outcome != want {
			t.Errorf("from %s: %s, %v; want %s", client, a, err, want)
		}
	}
}

// Close removes every namespace, process and cgroup.
func TestClose(t *testing.T) {
	needRoot(t)
	l, err := New(t.Context(), Config{Nodes: 1, Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	if l.Nodes[0].Cgroup != "" {
		members, err := os.ReadFile(filepath.Join(l.Nodes[0].Cgroup, "cgroup.procs"))
		if err != nil || len(strings.Fields(string(members))) != 1 {
			t.Errorf("cgroup of %s holds %q, %v; want one process", l.Nodes[0].Name, members, err)
		}
	}
	forgotten := exec.Command("sleep", "60")
	if err := l.Nodes[0].Start(forgotten); err != nil {
		t.Fatal(err)
	}
	go func() { _ = forgotten.Wait() }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		if _, err := os.Stat("/run/netns/" + h.Namespace); err == nil {
			t.Errorf("namespace %s is still there", h.Namespace)
		}
		select {
		case <-h.process.Exited():
		default:
			t.Errorf("the process of %s is still there", h.Name)
		}
	}
	if l.cgroup != "" {
		if _, err := os.Stat(l.cgroup); err == nil {
			t.Errorf("cgroup %s is still there", l.cgroup)
		}
	}
}

// What a killed run left behind goes when the next lab is made; what belongs
// to running processes stays.
func TestLeftovers(t *testing.T) {
	needRoot(t)
	mine, err := labName(os.Getpid(), 99)
	if err != nil {
		t.Fatal(err)
	}
	earlier := fmt.Sprintf("%s%d-1-1", namePrefix, os.Getpid()) // our pid, another process
	for name, want := range map[string]bool{
		mine + "-a1": false, earlier + "-a1": true,
		namePrefix + "999999999-1-1-a1": true, // no such process
		"other-1-1-1":                   false,
		namePrefix + "what":             false,
	} {
		if got := leftover(name); got != want {
			t.Errorf("leftover(%q) is %t, want %t", name, got, want)
		}
	}
	for _, name := range []string{earlier + "-a1", mine + "-a1"} {
		ns, err := makeNamespace(name)
		if err != nil {
			t.Fatal(err)
		}
		_ = ns.Close()
		t.Cleanup(func() { _ = removeNamespace(name) })
	}
	newLab(t, Config{Nodes: 1, Pods: -1})
	if _, err := os.Stat(filepath.Join(namespaceDir, earlier+"-a1")); err == nil {
		t.Error("the leftover is still there")
	}
	if _, err := os.Stat(filepath.Join(namespaceDir, mine+"-a1")); err != nil {
		t.Errorf("a namespace in use was removed: %v", err)
	}
}

package ipvs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/backendtest"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// servicesFlag is how large TestCosts' large cluster is, and how many addresses
// TestRoutesOrDevice adds; the figures in README.md and docs/adr/0006 are of
// 10,000, which takes an emulated machine some minutes.
var servicesFlag = flag.Int("services", 1000, "how many Services there are in what is measured")

// inNetns runs a test in a process and network namespace of its own: the
// backend programs its process's namespace and uses several threads.
func inNetns(t *testing.T, do func()) {
	t.Helper()
	kerneltest.Child{Args: []string{fmt.Sprintf("-services=%d", *servicesFlag), "-test.timeout=20m"}}.Run(t, do)
}

// missing skips a test that this machine cannot run, or fails it where it must.
func missing(t testing.TB, why string) {
	t.Helper()
	kerneltest.Unable(t, why)
}

// opened is a backend in the namespace of the test's process. Where the kernel
// has no IPVS the test is skipped, REQUIRE_KERNEL or not: `make test-vm` runs
// these tests on kernels that have it.
func opened(t *testing.T, o Options) *backend {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := hasIPVS(); errors.Is(err, dataplane.ErrUnsupported) {
		t.Skipf("%v; make test-vm runs this test on kernels that have it", err)
	}
	b, err := open(o, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func testConfig() dataplane.Config {
	return dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}, MasqueradeBit: 14, LocalhostNodePorts: true}
}

func snapshotOf(ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	return &dataplane.Snapshot{Revision: 1, Node: &dataplane.Node{Name: "a"}, Ports: dataplane.MakePorts(ports...)}
}

// TestReadsAllServices: what is read back is all that there is, though services
// come and go in another network namespace of the same kernel. On a slow machine
// that is several times in each dump, so that one read of ten may lack some.
func TestReadsAllServices(t *testing.T) {
	inNetns(t, func() {
		k := opened(t, Options{}).kernel
		const services, reads = 500, 10
		for i := range services {
			if err := k.put(nth(i), "rr", false); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		ended := churnElsewhere(t, done)
		short := 0
		for range reads {
			all, err := k.read()
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != services {
				short++
				t.Logf("%d services; want %d", len(all), services)
			}
		}
		if short > 1 {
			t.Errorf("%d of %d reads lack services", short, reads)
		}
		close(done)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func nth(i int) serviceKey {
	return serviceKey{dataplane.TCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)}
}

// churnElsewhere makes and removes services in a network namespace of its own
// until done, and tells how that went.
func churnElsewhere(t *testing.T, done <-chan struct{}) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the thread ends with this function, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		var k *kernel
		if err == nil {
			k, err = openKernel(&counts{})
		}
		close(begun)
		if err != nil {
			ended <- err
			return
		}
		defer k.close()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			change := func(key serviceKey) error { return k.put(key, "rr", false) }
			if i%2 == 1 {
				change = k.remove
			}
			if err := change(nth(i / 2 % 100)); err != nil {
				ended <- err
				return
			}
			time.Sleep(50 * time.Millisecond) // some in each dump
		}
	}()
	<-begun
	return ended
}

// TestProbe: on a kernel without IPVS the probe says which module is missing, and
// on one with it that all is well; it leaves nothing behind.
func TestProbe(t *testing.T) {
	inNetns(t, func() {
		err := Driver(Options{}).Probe(context.Background(), testConfig())
		if _, gone := os.Stat("/proc/net/ip_vs"); gone != nil {
			if !errors.Is(err, dataplane.ErrUnsupported) || !strings.Contains(err.Error(), "module ip_vs") {
				t.Errorf("the probe says %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := Driver(Options{Scheduler: "wlc"}).Probe(context.Background(), testConfig()); err != nil {
			t.Error(err)
		}
		b := opened(t, Options{})
		if list, err := b.kernel.ipvs.GetServices(); err != nil || len(list) > 0 {
			t.Errorf("the probe left %d services, %v", len(list), err)
		}
		if err := b.tryScheduler("ftl"); !errors.Is(err, dataplane.ErrUnsupported) || !strings.Contains(err.Error(), "module ip_vs_ftl") {
			t.Errorf("of a scheduler that no kernel has it is said: %v", err)
		}
	})
}

// TestForeign: services of another program stay, also those of its own making
// that look much like ours.
func TestForeign(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		theirs := &ipvs.Service{Address: net.ParseIP("10.96.0.99").To4(), Protocol: syscall.IPPROTO_TCP, Port: 80, SchedName: "rr", AddressFamily: syscall.AF_INET, Netmask: 0xffffffff}
		if err := b.kernel.ipvs.NewService(theirs); err != nil {
			t.Fatal(err)
		}
		want := snapshotOf(port("web", frontend(dataplane.ClusterIP, "10.96.0.10:80", pool("10.244.1.5:80"), dataplane.SNATNone)))
		for _, step := range []func() error{
			func() error { return b.Sync(t.Context(), nil, want) },
			func() error { return b.Sync(t.Context(), nil, snapshotOf()) },
			func() error { return b.Sync(t.Context(), nil, want) },
			func() error { return cleanup(b.log) },
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.kernel.ipvs.GetService(theirs); err != nil {
				t.Fatal("another program's service is gone")
			}
		}
		if list, err := b.kernel.ipvs.GetServices(); err != nil || len(list) != 1 {
			t.Errorf("Cleanup left %d services, %v", len(list), err)
		}
	})
}

// TestEndpointThatIsNotUnicast: the kernel takes no multicast address for an endpoint. A
// Service that has one is refused by name, is as it was before or absent, and costs the
// others of its family nothing.
func TestEndpointThatIsNotUnicast(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		for _, tc := range []struct{ vip, other, one, two, bad string }{
			{"10.96.0.1:80", "10.96.0.2:80", "10.244.1.5:80", "10.244.1.6:80", "239.1.1.1:80"},
			{"[fd96::1]:80", "[fd96::2]:80", "[fd00::5]:80", "[fd00::6]:80", "[ff0e::1]:80"},
		} {
			web := func(endpoints ...string) *dataplane.ServicePort {
				return port("web", frontend(dataplane.ClusterIP, tc.vip, pool(endpoints...), dataplane.SNATNone))
			}
			other := func(endpoint string) *dataplane.ServicePort {
				return port("other", frontend(dataplane.ClusterIP, tc.other, pool(endpoint), dataplane.SNATNone))
			}
			first, mended := snapshotOf(web(tc.one), other(tc.one)), snapshotOf(web(tc.one, tc.two), other(tc.two))
			for _, step := range []struct {
				what             string
				prev, want, held *dataplane.Snapshot
			}{
				{"it comes", nil, snapshotOf(web(tc.one, tc.bad), other(tc.one)), snapshotOf(other(tc.one))},
				{"it is mended", snapshotOf(other(tc.one)), first, first},
				{"it has one again", first, snapshotOf(web(tc.two, tc.bad), other(tc.two)), snapshotOf(web(tc.one), other(tc.two))},
				{"a repair, with one still", nil, snapshotOf(web(tc.bad, tc.two), other(tc.two)), snapshotOf(web(tc.one), other(tc.two))},
				{"it is mended again", snapshotOf(web(tc.one), other(tc.two)), mended, mended},
			} {
				err := b.Sync(t.Context(), step.prev, step.want)
				partial, failed, _ := dataplane.IsPartial(err)
				switch refused := step.held != step.want; {
				case !refused && err != nil:
					t.Errorf("%s: %v", step.what, err)
				case refused && (partial == nil || failed != nil || len(partial.Failed) != 1 || partial.Failed[0].ID.Service != "web"):
					t.Errorf("%s: Sync returned %v; want an error of the Service alone", step.what, err)
				}
				backendtest.MustHold(t, b, step.held)
			}
		}
	})
}

// TestDrain: an endpoint with connections stays at weight 0, a new process finds
// it, and it goes when they have ended or the time is over.
func TestDrain(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{DrainTimeout: 5 * time.Second})
		server, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		here := netip.MustParseAddrPort(server.Addr().String())
		// To an address of the node itself, as loopback ones never leave it.
		const vip = "10.96.0.10:80"
		if err := exec.Command("ip", "addr", "add", "192.0.2.1/32", "dev", "lo").Run(); err != nil {
			t.Fatal(err)
		}
		one := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), here.Port()).String()
		_ = server.Close()
		if server, err = net.Listen("tcp4", one); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		with := snapshotOf(port("web", frontend(dataplane.ClusterIP, vip, pool(one), dataplane.SNATNone)))
		without := snapshotOf(port("web", frontend(dataplane.ClusterIP, vip, pool("192.0.2.9:80"), dataplane.SNATNone)))
		if err := b.Sync(t.Context(), nil, with); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp4", vip, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := b.Sync(t.Context(), with, without); err != nil {
			t.Fatal(err)
		}
		weight := func() string {
			b.mu.Lock() // the drainer asks over the same socket
			defer b.mu.Unlock()
			have, err := b.kernel.destinations(serviceKey{dataplane.TCP, netip.MustParseAddrPort(vip)})
			if err != nil {
				t.Fatal(err)
			}
			d, ok := have[netip.MustParseAddrPort(one)]
			if !ok {
				return "gone"
			}
			return fmt.Sprintf("weight %d", d.weight)
		}
		if got := weight(); got != "weight 0" {
			t.Fatalf("a removed endpoint with a connection has %s; want weight 0", got)
		}
		b.mu.Lock()
		clear(b.drains) // as a new process, which knows nothing
		b.mu.Unlock()
		if err := b.Sync(t.Context(), nil, without); err != nil {
			t.Fatal(err)
		}
		if got := weight(); got != "weight 0" || len(b.drains) != 1 {
			t.Fatalf("after a restart it has %s, and %d endpoints are known to drain", got, len(b.drains))
		}
		for range 100 {
			if weight() == "gone" {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
		t.Error("it is still there long after its time")
	})
}

// TestSchedulersPassOverDraining: while an endpoint drains, each client gets another
// one, whatever chooses.
func TestSchedulersPassOverDraining(t *testing.T) {
	for _, scheduler := range dataplane.Schedulers() {
		t.Run(scheduler, func(t *testing.T) {
			inNetns(t, func() {
				b := opened(t, Options{Scheduler: scheduler})
				if err := b.tryScheduler(scheduler); err != nil {
					t.Skip(err)
				}
				servers := []string{greeter(t, "192.0.2.1"), greeter(t, "192.0.2.2")}
				const vip = "10.96.0.10:80"
				both := snapshotOf(port("web", frontend(dataplane.ClusterIP, vip, pool(servers...), dataplane.SNATNone)))
				if err := b.Sync(t.Context(), nil, both); err != nil {
					t.Fatal(err)
				}
				if err := b.Sync(t.Context(), both, both); err != nil {
					t.Fatal(err)
				}
				var left, stays string // an endpoint with connections goes
				for i := range 20 {
					conn, name := meet(t, clientOf(t, i), vip)
					defer func() { _ = conn.Close() }()
					left = name
				}
				for _, s := range servers {
					if s != left {
						stays = s
					}
				}
				one := snapshotOf(port("web", frontend(dataplane.ClusterIP, vip, pool(stays), dataplane.SNATNone)))
				if err := b.Sync(t.Context(), both, one); err != nil {
					t.Fatal(err)
				}
				for i := range 40 {
					conn, name := meet(t, clientOf(t, i), vip)
					_ = conn.Close()
					if name != stays {
						t.Errorf("client %d is answered by %s, which drains", i, name)
					}
				}
			})
		})
	}
}

// clientOf gives the node its i-th further address.
func clientOf(t *testing.T, i int) net.Addr {
	t.Helper()
	a := fmt.Sprintf("192.0.2.%d", 100+i)
	if out, err := exec.Command("ip", "addr", "replace", a+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return &net.TCPAddr{IP: net.ParseIP(a)}
}

// greeter serves at an address that it gives to the node, and says which to each client.
func greeter(t *testing.T, addr string) string {
	t.Helper()
	if out, err := exec.Command("ip", "addr", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("tcp4", addr+":8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	name := l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(name))
		}
	}()
	return name
}

// meet connects and gives the name of who answers.
func meet(t *testing.T, from net.Addr, to string) (net.Conn, string) {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: from, Timeout: 3 * time.Second}).Dial("tcp4", to)
	if err != nil {
		t.Fatalf("a client finds nobody: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 64)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatalf("nobody greets: %v", err)
	}
	return conn, string(b[:n])
}

// TestCosts: what one change writes does not depend on how many Services there
// are. The figures are in README.md.
func TestCosts(t *testing.T) {
	inNetns(t, func() {
		var changes []counts
		for _, n := range []int{100, *servicesFlag} {
			b := opened(t, Options{})
			want := manyServices(n)
			took := func(what string, prev, want *dataplane.Snapshot) counts {
				b.counts = counts{}
				start := time.Now()
				if err := b.Sync(t.Context(), prev, want); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d Services, %s: %s, %+v", n, what, time.Since(start).Round(time.Millisecond/10), b.counts)
				return b.counts
			}
			took("from empty", nil, want)
			less := *want
			less.Ports = want.Ports.With([]*dataplane.ServicePort{oneLess(want)}, nil)
			changes = append(changes, took("one endpoint goes", want, &less), took("one endpoint comes", &less, want))
			again := took("restart with all in place", nil, want)
			if again.table.Rules+again.table.Elements+again.routes+again.table.Transactions > 0 {
				t.Errorf("a restart wrote %+v", again)
			}
			if err := cleanup(b.log); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if changes[0] != changes[2] || changes[1] != changes[3] {
			t.Errorf("a change writes %+v and %+v with 100 Services, %+v and %+v with %d", changes[0], changes[1], changes[2], changes[3], *servicesFlag)
		}
	})
}

// manyServices have a ClusterIP and ten endpoints each.
func manyServices(n int) *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	for i := range n {
		p := &dataplane.Pool{}
		for k := range 10 {
			a := netip.AddrFrom4([4]byte{10, byte(128 + i>>12), byte(i >> 4), byte(i<<4 | k)})
			p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Local: k == 0})
		}
		vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		ports = append(ports, port(fmt.Sprintf("web-%d", i), dataplane.Frontend{Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(vip, 80), Pool: p, SNAT: dataplane.SNATNonPods}))
	}
	return snapshotOf(ports...)
}

// oneLess is the first ServicePort without its last endpoint.
func oneLess(s *dataplane.Snapshot) *dataplane.ServicePort {
	for p := range s.Ports.All() {
		less := *p
		less.Frontends = []dataplane.Frontend{p.Frontends[0]}
		less.Frontends[0].Pool = &dataplane.Pool{Endpoints: p.Frontends[0].Pool.Endpoints[:9]}
		return &less
	}
	return nil
}

// TestRoutesOrDevice measures the two ways to bring packets to IPVS. The figures
// are in docs/adr/0006.
func TestRoutesOrDevice(t *testing.T) {
	inNetns(t, func() {
		_ = exec.Command("ip", "link", "set", "lo", "up").Run()
		device := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "many0"}}
		if err := netlink.LinkAdd(device); err != nil {
			t.Skipf("making a dummy device: %v; make test-vm runs this test on kernels that can", err)
		}
		if err := netlink.LinkSetUp(device); err != nil {
			t.Fatal(err)
		}
		var c counts
		r, err := openRoutes(&c)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		for _, family := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			var addrs []netip.Addr
			for i := range *servicesFlag {
				a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
				if family == dataplane.IPv6 {
					a = netip.AddrFrom16([16]byte{0xfd, 0x96, 14: byte(i >> 8), 15: byte(i)})
				}
				addrs = append(addrs, a)
			}
			took := func(what string, do func(netip.Addr) error) {
				start := time.Now()
				for _, a := range addrs {
					if err := do(a); err != nil {
						t.Fatal(err)
					}
				}
				t.Logf("%s: %s %d: %s", family, what, len(addrs), time.Since(start).Round(time.Millisecond))
			}
			took("add local routes to", r.add)
			took("remove local routes to", r.remove)
			address := func(a netip.Addr) *netlink.Addr {
				return &netlink.Addr{IPNet: r.route(a).Dst, Flags: 2} // IFA_F_NODAD
			}
			took("add addresses on a device,", func(a netip.Addr) error { return r.netlink.AddrAdd(device, address(a)) })
			start := time.Now()
			if out, err := exec.Command("ip", "link", "del", "many0").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Logf("%s: remove the device: %s", family, time.Since(start).Round(time.Millisecond))
			device = &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "many0"}}
			if err := errors.Join(netlink.LinkAdd(device), netlink.LinkSetUp(device)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

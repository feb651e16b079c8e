package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// insideVariable is set in the process that runs the tests. It has a network
// namespace and a cgroup of its own, so that nothing on the host changes.
const insideVariable = "SWITCHYARD_EBPF_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) != "" {
		os.Exit(m.Run())
	}
	status, err := runInside()
	if err != nil {
		if kerneltest.Required() {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintf(os.Stderr, "without the tests that need the kernel: %v\n", err)
		os.Exit(m.Run())
	}
	os.Exit(status)
}

// testPrefix starts the names of cgroups and pins; the process's number ends them.
const testPrefix = "switchyard-test-"

// removeLeftovers removes what test processes that were killed left.
func removeLeftovers(cgroups string) {
	for _, dir := range []string{"/sys/fs/bpf", cgroups} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			pid, ours := strings.CutPrefix(e.Name(), testPrefix)
			if _, err := os.Stat("/proc/" + pid); !ours || err == nil {
				continue
			}
			if dir == cgroups {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			} else {
				_ = os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		}
	}
}

// runInside runs this binary again, in a namespace and a cgroup.
func runInside() (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("network namespaces and eBPF need root")
	}
	root, err := programs.CgroupRoot("")
	if err != nil {
		return 0, err
	}
	removeLeftovers(root)
	name := fmt.Sprintf("%s%d", testPrefix, os.Getpid())
	cgroup := filepath.Join(root, name)
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(cgroup) }()
	defer func() { _ = os.RemoveAll(filepath.Join("/sys/fs/bpf", name)) }()
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer func() { _ = dir.Close() }()
	outer, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return 0, err
	}
	defer func() { _ = outer.Close() }()
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"="+name)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{outer} // outerNamespace
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL,
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// needKernel skips a test where it does not run inside.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		t.Skip("needs root, cgroup v2 and eBPF; what is missing is written above")
	}
}

// outerNamespace is the descriptor of the network namespace that the tests were
// started in.
const outerNamespace = 3

// inOuter runs f in that namespace.
func inOuter(t testing.TB, f func() error) {
	t.Helper()
	if err := netns.OnThread(func() error {
		if err := unix.Setns(outerNamespace, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	}); err != nil {
		t.Fatal(err)
	}
}

// tellsCookies reports whether the kernel tells cookies of network namespaces, as
// it does since Linux 5.14.
func tellsCookies(t testing.TB) bool {
	t.Helper()
	cookie, err := programs.NetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	return cookie != 0
}

// withAndWithoutCookies runs a test as on kernels from 5.14 and as on those
// before, where the machine's first network namespace is the node's: connectFrom
// connects there. Either is left out where it cannot be.
func withAndWithoutCookies(t *testing.T, test func(t *testing.T, o Options)) {
	t.Helper()
	needKernel(t)
	tells, first := tellsCookies(t), true
	if tells {
		t.Run("the kernel tells cookies", func(t *testing.T) { test(t, testOptions(t)) })
		inOuter(t, func() error {
			cookie, err := programs.NetnsCookie()
			first = cookie == 1 // the first namespace has the first cookie
			return err
		})
	}
	if !first {
		t.Log("not started in the machine's first network namespace: not tested as before Linux 5.14")
		return
	}
	t.Run("the kernel tells no cookies", func(t *testing.T) {
		o := testOptions(t)
		o.noCookies = true
		test(t, o)
	})
}

// needAuto skips a test of what only mode auto of kernels from 5.14 does; before,
// it works as node (TestModeAutoWithoutCookies).
func needAuto(t *testing.T) {
	t.Helper()
	needKernel(t)
	if !tellsCookies(t) {
		t.Skip("before Linux 5.14 mode auto works as node")
	}
}

// testOptions are for a backend of this test alone.
func testOptions(t testing.TB) Options {
	t.Helper()
	needKernel(t)
	name := os.Getenv(insideVariable)
	root, err := programs.CgroupRoot("")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{SocketLB: All, CgroupRoot: filepath.Join(root, name), PinDir: filepath.Join("/sys/fs/bpf", name, fmt.Sprint(time.Now().UnixNano()))}
	t.Cleanup(func() {
		if err := programs.Cleanup(o.withDefaults().PinDir); err != nil {
			t.Error(err)
		}
	})
	openNetwork(t)
	return o
}

// openNetwork makes every address reachable through lo.
func openNetwork(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		dst, err := netlink.ParseIPNet(all)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index}); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
	}
}

func testConfig() dataplane.Config {
	return dataplane.Config{
		Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6},
		MasqueradeBit: 14, LocalhostNodePorts: true,
	}
}

// memory is a packet backend that forwards nothing: it remembers what it was
// given, and may be told what to refuse or to fail with.
type memory struct {
	held      *dataplane.Snapshot
	fails     error  // of the next Sync
	during    func() // called while it syncs; nil: nothing
	observing func() // called while it observes; nil: nothing
	traits    dataplane.Traits
}

// Traits returns what the test says.
func (m *memory) Traits() dataplane.Traits { return m.traits }

// Sync implements dataplane.Backend.
func (m *memory) Sync(_ context.Context, _, want *dataplane.Snapshot) error {
	if m.during != nil {
		m.during()
	}
	var partial *dataplane.PartialError
	if m.fails == nil || errors.As(m.fails, &partial) {
		m.held = want
	}
	return m.fails
}

// Observe implements dataplane.Backend.
func (m *memory) Observe(context.Context) (*dataplane.Observation, error) {
	if m.observing != nil {
		m.observing()
	}
	if m.held == nil {
		return &dataplane.Observation{}, nil
	}
	o := dataplane.Expect(m.held)
	o.Whole = true
	return o, nil
}

// Close implements dataplane.Backend.
func (*memory) Close() error { return nil }

// inMemory is the Driver of one.
func inMemory() dataplane.Driver {
	return dataplane.Driver{
		Name:    "memory",
		Open:    func(context.Context, dataplane.Config) (dataplane.Backend, error) { return &memory{}, nil },
		Cleanup: func(context.Context, dataplane.Config) error { return nil },
	}
}

func testDriver(o Options) dataplane.Driver { return Accelerate("ebpf", o, inMemory()) }

func openBackend(t testing.TB, o Options) *accelerated {
	t.Helper()
	b, err := testDriver(o).Open(t.Context(), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b.(*accelerated)
}

func mustSync(t testing.TB, b *accelerated, prev, want *dataplane.Snapshot) {
	t.Helper()
	if err := b.Sync(t.Context(), prev, want); err != nil {
		t.Fatal(err)
	}
}

// snapshot is a Snapshot of ports on a node with address 192.0.2.1.
func snapshot(ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	return &dataplane.Snapshot{Revision: 1, Node: testNode(), Ports: dataplane.MakePorts(ports...)}
}

func testNode() *dataplane.Node {
	return &dataplane.Node{
		Name:      "node",
		NodePorts: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")},
		LocalPods: dataplane.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/24"), netip.MustParsePrefix("fd40::/64")}},
	}
}

func poolOf(endpoints ...string) *dataplane.Pool {
	p := &dataplane.Pool{}
	for _, e := range endpoints {
		p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	return p
}

func frontendAt(kind dataplane.Kind, addr string, pool *dataplane.Pool) dataplane.Frontend {
	return dataplane.Frontend{Kind: kind, Addr: netip.MustParseAddrPort(addr), Pool: pool}
}

func portOf(name string, protocol dataplane.Protocol, frontends ...dataplane.Frontend) *dataplane.ServicePort {
	return &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: "test", Service: name, Protocol: protocol, Family: dataplane.FamilyOf(frontends[0].Addr.Addr())},
		Frontends: frontends,
	}
}

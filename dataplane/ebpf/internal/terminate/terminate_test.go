package terminate_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	bpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// The node's and the pod's namespace both have both endpoints' addresses on lo,
// so that each client reaches them where it is.
var (
	vip     = map[dataplane.Family]netip.AddrPort{dataplane.IPv4: netip.MustParseAddrPort("10.96.0.1:80"), dataplane.IPv6: netip.MustParseAddrPort("[fd96::1]:80")}
	removed = map[dataplane.Family]netip.AddrPort{dataplane.IPv4: netip.MustParseAddrPort("10.40.0.1:8080"), dataplane.IPv6: netip.MustParseAddrPort("[fd40::1]:8080")}
	stays   = map[dataplane.Family]netip.AddrPort{dataplane.IPv4: netip.MustParseAddrPort("10.40.0.2:8080"), dataplane.IPv6: netip.MustParseAddrPort("[fd40::2]:8080")}
)

// lab is a node with a pod, both of them this process, in a cgroup of its own.
type lab struct {
	cgroup, pins string
	node, pod    netns.NsHandle
	backend      dataplane.Backend
}

func newLab(t *testing.T) *lab {
	kerneltest.NeedRoot(t)
	l := &lab{cgroup: enterCgroup(t), pins: fmt.Sprintf("/sys/fs/bpf/switchyard-test-%d", os.Getpid())}
	l.node, l.pod = newNamespace(t), newNamespace(t)
	driver := ebpf.Accelerate("ebpf", ebpf.Options{SocketLB: ebpf.All, CgroupRoot: l.cgroup, PinDir: l.pins}, nothing())
	cfg := dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}, MasqueradeBit: 14}
	on(t, l.node, func() error {
		if err := driver.Probe(t.Context(), cfg); err != nil {
			return err
		}
		var err error
		l.backend, err = driver.Open(t.Context(), cfg)
		return err
	})
	t.Cleanup(func() {
		on(t, l.node, func() error { return errors.Join(l.backend.Close(), driver.Cleanup(context.Background(), cfg)) })
	})
	return l
}

// nothing is a packet backend that forwards nothing.
func nothing() dataplane.Driver {
	return dataplane.Driver{
		Name:    "nothing",
		Open:    func(context.Context, dataplane.Config) (dataplane.Backend, error) { return nowhere{}, nil },
		Cleanup: func(context.Context, dataplane.Config) error { return nil },
	}
}

type nowhere struct{}

func (nowhere) Sync(context.Context, *dataplane.Snapshot, *dataplane.Snapshot) error { return nil }
func (nowhere) Observe(context.Context) (*dataplane.Observation, error) {
	return &dataplane.Observation{}, nil
}
func (nowhere) Close() error { return nil }

// enterCgroup puts this process into a cgroup of its own until the test ends.
func enterCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	root, was := "", ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" && root == "" {
			root = f[1]
		}
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			was = filepath.Join(root, path)
		}
	}
	if root == "" || was == "" {
		kerneltest.Unable(t, "no cgroup v2 is mounted")
	}
	dir := filepath.Join(root, fmt.Sprintf("switchyard-test-%d", os.Getpid()))
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), fmt.Appendf(nil, "%d", os.Getpid()), 0)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		kerneltest.Unable(t, err.Error())
	}
	t.Cleanup(func() {
		if err := errors.Join(move(was), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := move(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newNamespace makes a network namespace with the endpoints' addresses on lo.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	type made struct {
		ns  netns.NsHandle
		err error
	}
	result := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.New()
		if err == nil {
			err = prepareLoopback()
		}
		result <- made{ns, err}
	}()
	m := <-result
	if m.err != nil {
		kerneltest.Unable(t, "making a network namespace: "+m.err.Error())
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

func prepareLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, family := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		for _, a := range []netip.Addr{removed[family].Addr(), stays[family].Addr()} {
			ip := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ip, Flags: syscall.IFA_F_NODAD}); err != nil {
				return err
			}
		}
	}
	return nil
}

// on runs f on a thread in a network namespace.
func on(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	if err := <-result; errors.Is(err, dataplane.ErrUnsupported) {
		kerneltest.Unable(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
}

// sync makes a TCP Service in both families with one endpoint.
func (l *lab) sync(t *testing.T, endpoint map[dataplane.Family]netip.AddrPort) {
	t.Helper()
	var ports []*dataplane.ServicePort
	for family, at := range vip {
		ports = append(ports, &dataplane.ServicePort{
			ID:      dataplane.PortID{Namespace: "test", Service: "web", Protocol: dataplane.TCP, Family: family},
			Serving: []dataplane.Endpoint{{Addr: endpoint[family]}},
			Frontends: []dataplane.Frontend{{
				Kind: dataplane.ClusterIP, Addr: at,
				Pool: &dataplane.Pool{Endpoints: []dataplane.Endpoint{{Addr: endpoint[family], Local: true}}},
			}},
		})
	}
	s := &dataplane.Snapshot{Revision: 1, Node: &dataplane.Node{Name: "node"}, Ports: dataplane.MakePorts(ports...)}
	on(t, l.node, func() error { return l.backend.Sync(t.Context(), nil, s) })
}

// gone are the removed endpoints of each Service port, by the numbers that the
// backend gave them.
func (l *lab) gone(t *testing.T) []terminate.Endpoint {
	t.Helper()
	frontends, err := bpf.LoadPinnedMap(filepath.Join(l.pins, "v2", "maps", "frontends"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = frontends.Close() }()
	var all []terminate.Endpoint
	var k, v []byte
	for i := frontends.Iterate(); i.Next(&k, &v); {
		family := dataplane.FamilyOf(netip.AddrFrom16([16]byte(k[:16])).Unmap())
		if service := binary.NativeEndian.Uint32(v[4:]); service != 0 {
			all = append(all, terminate.Endpoint{Service: service, Protocol: dataplane.Protocol(k[18]), Addr: removed[family]})
		}
	}
	return all
}

// client is a connection, and what must become of it.
type client struct {
	name string
	conn net.Conn
	ends bool
}

// clients connect from the node and from the pod: to the Service while its
// endpoint is the one to be removed, past the Service to that endpoint, and to
// the Service when its endpoint is the one that stays.
func (l *lab) clients(t *testing.T, knowsServices bool) []client {
	t.Helper()
	var all []client
	dial := func(what string, to map[dataplane.Family]netip.AddrPort, ends bool) {
		for where, ns := range map[string]netns.NsHandle{"node": l.node, "pod": l.pod} {
			for family, at := range to {
				on(t, ns, func() error {
					c, err := net.Dial("tcp", at.String())
					if err == nil {
						t.Cleanup(func() { _ = c.Close() })
						all = append(all, client{fmt.Sprintf("the %s over %s %s", where, family, what), c, ends})
					}
					return err
				})
			}
		}
	}
	l.sync(t, removed)
	dial("to the Service", vip, true)
	dial("straight to the removed endpoint", removed, !knowsServices)
	l.sync(t, stays)
	dial("to the Service as it is now", vip, false)
	return all
}

// serve listens on the endpoints in both namespaces.
func (l *lab) serve(t *testing.T) {
	t.Helper()
	for _, ns := range []netns.NsHandle{l.node, l.pod} {
		for _, endpoints := range []map[dataplane.Family]netip.AddrPort{removed, stays} {
			for _, at := range endpoints {
				on(t, ns, func() error {
					tcp, err := net.Listen("tcp", at.String())
					if err != nil {
						return err
					}
					t.Cleanup(func() { _ = tcp.Close() })
					return nil
				})
			}
		}
	}
}

// kernelDestroysSockets tells whether the kernel has the function for programs.
func kernelDestroysSockets(t *testing.T) bool {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		kerneltest.Unable(t, err.Error())
	}
	var f *btf.Func
	return kernel.TypeByName("bpf_sock_destroy", &f) == nil
}

// TestTerminate: whose connection to a Service has lost its endpoint learns it
// at its next call, in the node and in pods; nobody else notices anything. By
// netlink the kernel does not tell who asked for a Service.
func TestTerminate(t *testing.T) {
	for _, how := range []string{"by programs", "by netlink"} {
		t.Run(how, func(t *testing.T) {
			if how == "by programs" && !kernelDestroysSockets(t) {
				t.Skip("Linux before 6.5 has no bpf_sock_destroy: sockets are ended by netlink there")
			}
			l := newLab(t)
			l.serve(t)
			clients := l.clients(t, how == "by programs")
			var end *terminate.Terminator
			if how == "by programs" {
				end = l.byPrograms(t)
			} else {
				end = terminate.OpenNetlink(l.cgroup)
			}
			t.Cleanup(func() { _ = end.Close() })
			n := 0
			on(t, l.node, func() (err error) { n, err = terminateInBoth(t, l, end); return err })
			want := 0
			for _, c := range clients {
				if c.ends {
					want++
				}
				if !c.ends {
					if _, err := c.conn.Write([]byte("x")); err != nil {
						t.Errorf("%s: should go on; write says %v", c.name, err)
					}
					continue
				}
				if err := c.conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
					t.Error(err)
				}
				if _, err := c.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
					t.Errorf("%s: read says %v; want ECONNABORTED", c.name, err)
				}
				if _, err := c.conn.Write([]byte("x")); err == nil {
					t.Errorf("%s: write goes on", c.name)
				}
			}
			if n < want {
				t.Errorf("Terminate says %d sockets; want %d at least", n, want)
			}
		})
	}
}

func (l *lab) byPrograms(t *testing.T) *terminate.Terminator {
	t.Helper()
	peers, err := bpf.LoadPinnedMap(filepath.Join(l.pins, "v2", "maps", "peers"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peers.Close() })
	var log strings.Builder
	end, err := terminate.Open(peers, l.cgroup, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		_ = end.Close()
		kerneltest.Unable(t, log.String())
	}
	return end
}

// terminateInBoth has a process in each namespace, by which they are found.
func terminateInBoth(t *testing.T, l *lab, end *terminate.Terminator) (int, error) {
	for _, ns := range []netns.NsHandle{l.node, l.pod} {
		p, err := sleepIn(ns)
		if err != nil {
			return 0, err
		}
		defer func() {
			_ = p.Kill()
			_, _ = p.Wait()
		}()
	}
	return end.Terminate(l.gone(t))
}

// sleepIn starts a process in a network namespace and in this cgroup.
func sleepIn(ns netns.NsHandle) (*os.Process, error) {
	if err := netns.Set(ns); err != nil { // of a thread that is not handed back
		return nil, err
	}
	return os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
}

package iptables

import (
	"bytes"
	"context"
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

	"github.com/switchyard-io/switchyard/dataplane"
)

// inNetns runs a test in a process and network namespace of its own. The
// backend programs its process's namespace and uses several threads.
func inNetns(t testing.TB, do func()) {
	t.Helper()
	if os.Getenv("SWITCHYARD_TEST_CHILD") == t.Name() {
		do()
		return
	}
	if os.Geteuid() != 0 {
		missing(t, "needs root")
		return
	}
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	args := []string{"-test.run=" + pattern, "-test.v=" + fmt.Sprint(testing.Verbose()), "-test.timeout=10m"}
	if _, ok := t.(*testing.B); ok {
		args = append(args, "-test.bench="+pattern, "-test.run=^$")
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Env = append(os.Environ(), "SWITCHYARD_TEST_CHILD="+t.Name(),
		"XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "lock")) // nobody else's lock
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("in its own network namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("in its own network namespace:\n%s", out)
	case testing.Verbose():
		t.Logf("%s", out)
	}
}

// missing skips a test that this machine cannot run, or fails it where it must.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("REQUIRE_KERNEL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func config() dataplane.Config {
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return dataplane.Config{
		Log:                slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		Families:           []dataplane.Family{dataplane.IPv4, dataplane.IPv6},
		MasqueradeBit:      14,
		LocalhostNodePorts: true,
	}
}

// services makes n Services of e endpoints each, in one family.
func services(f dataplane.Family, n, e int) []*dataplane.ServicePort {
	ports := make([]*dataplane.ServicePort, 0, n)
	for i := range n {
		ports = append(ports, service(f, i, e))
	}
	return ports
}

func service(f dataplane.Family, i, e int) *dataplane.ServicePort {
	address := func(v4, v6 string, i int) netip.Addr {
		base := netip.MustParseAddr(v4).AsSlice()
		if f == dataplane.IPv6 {
			base = netip.MustParseAddr(v6).AsSlice()
		}
		last := len(base) - 1
		base[last], base[last-1], base[last-2] = byte(i), byte(i>>8), base[last-2]+byte(i>>16)
		a, _ := netip.AddrFromSlice(base)
		return a
	}
	pool := &dataplane.Pool{}
	for j := range e {
		pool.Endpoints = append(pool.Endpoints, dataplane.Endpoint{
			Addr:  netip.AddrPortFrom(address("10.128.0.0", "fd00:128::", i*e+j), 8080),
			Local: i < 10 && j == 0,
		})
	}
	return &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: "bench", Service: fmt.Sprintf("svc-%d", i), Port: "http", Protocol: dataplane.TCP, Family: f},
		Frontends: []dataplane.Frontend{{Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(address("10.96.0.0", "fd00:96::", i+1), 80), Pool: pool, SNAT: dataplane.SNATNonPods}},
	}
}

func snapshot(ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	return &dataplane.Snapshot{
		Revision: 1,
		Node: &dataplane.Node{
			Name:      "node-1",
			NodePorts: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")},
			LocalPods: dataplane.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:128::/64")}},
		},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/108")},
		Ports:        dataplane.MakePorts(ports...),
	}
}

func opened(t testing.TB, mode Variant, cfg dataplane.Config) *backend {
	t.Helper()
	b, err := open(context.Background(), Options{Mode: string(mode)}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestScale(t *testing.T) {
	for _, v := range []Variant{NFT, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			inNetns(t, func() {
				ctx := context.Background()
				b := opened(t, v, config())
				want := snapshot(services(dataplane.IPv4, 10000, 10)...)
				step := func(name string, prev *dataplane.Snapshot) {
					start := time.Now()
					if err := b.Sync(ctx, prev, want); err != nil {
						t.Fatal(err)
					}
					t.Log(name, time.Since(start))
				}
				step("cold", nil)
				step("again", nil)
				prev := want
				next := *want
				next.Ports = want.Ports.With([]*dataplane.ServicePort{service(dataplane.IPv4, 77, 9)}, nil)
				want = &next
				step("change", prev)
				step("none", want)
				start := time.Now()
				o, err := b.Observe(ctx)
				if err != nil {
					t.Fatal(err)
				}
				t.Log("observe", time.Since(start))
				if d := o.Differences(dataplane.Expect(want)); len(d) > 0 {
					t.Error(len(d), d[0])
				}
			})
		})
	}
}

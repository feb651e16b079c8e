package iptables

import (
	"context"
	"errors"
	"flag"
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
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
	"github.com/switchyard-io/switchyard/dataplane/lock"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestMain runs benchmarks in a network namespace of their own, all in one.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		os.Exit(m.Run())
	}
	// The lock of this machine's iptables is not of the namespace.
	kerneltest.Main(m, nil, "XTABLES_LOCKFILE="+filepath.Join(os.TempDir(), "switchyard-bench-lock"))
}

// inNetns runs a test in a process and network namespace of its own: the
// backend programs its process's namespace and uses several threads.
func inNetns(t *testing.T, do func()) {
	t.Helper()
	kerneltest.Child{Args: []string{"-test.timeout=10m"}, Env: []string{"XTABLES_LOCKFILE=" + filepath.Join(t.TempDir(), "lock")}}.Run(t, do)
}

// lockDir is where tests have their locks, not those of this machine.
func lockDir() string { return filepath.Join(os.TempDir(), "switchyard-test-locks") }

// missing skips a test that this machine cannot run, or fails it where it must.
func missing(t testing.TB, why string) {
	t.Helper()
	kerneltest.Unable(t, why)
}

// eachVariant runs a test for nft and for legacy, each in its own namespace.
func eachVariant(t *testing.T, do func(*testing.T, *kernel)) {
	for _, v := range []restore.Variant{restore.NFT, restore.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			if _, err := restore.Find(t.Context(), v, dataplane.IPv4, 1); err != nil {
				missing(t, err.Error())
			}
			inNetns(t, func() { do(t, newKernel(t, v)) })
		})
	}
}

// kernel is a network namespace and the programs of one variant, each wrapped so
// that its runs are counted and can be refused.
type kernel struct {
	t       *testing.T
	variant restore.Variant
	dir     string // of the wrappers, their count, and what they refuse
}

func newKernel(t *testing.T, v restore.Variant) *kernel {
	k := &kernel{t: t, variant: v, dir: t.TempDir()}
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"-save", "-restore"} {
			name := base + "-" + string(v) + what
			real, err := exec.LookPath(name)
			if err != nil {
				t.Fatal(err)
			}
			script := fmt.Sprintf("#!/bin/sh\necho %s >>%s/runs\n", name, k.dir)
			if what == "-restore" {
				script += fmt.Sprintf("cat >%[1]s/$$\nif [ -s %[1]s/refuse ] && grep -q -f %[1]s/refuse %[1]s/$$; then . %[1]s/how; rm %[1]s/$$; exit 1; fi\n%[2]s \"$@\" <%[1]s/$$\nstatus=$?; rm %[1]s/$$; exit $status\n", k.dir, real)
			} else {
				script += "exec " + real + " \"$@\"\n"
			}
			if err := os.WriteFile(filepath.Join(k.dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", k.dir+":"+os.Getenv("PATH"))
	return k
}

// How a refused restore tells of it: with the line at fault, or, as legacy
// does for what the kernel refuses, with that of COMMIT.
const (
	byLine   = `n=$(grep -n -f %[1]s/refuse %[1]s/$$ | head -n 1 | cut -d: -f1); echo "line $n: RULE_APPEND failed (Operation not supported)" >&2`
	byCommit = `n=$(grep -n COMMIT %[1]s/$$ | tail -n 1 | cut -d: -f1); echo "iptables-restore: line $n failed" >&2`
)

// refuse makes restores fail whose input has a pattern; "" ends that.
func (k *kernel) refuse(pattern, how string) {
	k.t.Helper()
	if pattern != "" {
		pattern += "\n"
	}
	for name, text := range map[string]string{"refuse": pattern, "how": fmt.Sprintf(how, k.dir) + "\n"} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o644); err != nil {
			k.t.Fatal(err)
		}
	}
}

// runs are the programs run since the last call.
func (k *kernel) runs() []string {
	k.t.Helper()
	path := filepath.Join(k.dir, "runs")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		k.t.Fatal(err)
	}
	_ = os.Remove(path)
	return strings.Fields(string(b))
}

func (k *kernel) restores() int {
	n := 0
	for _, r := range k.runs() {
		if strings.HasSuffix(r, "-restore") {
			n++
		}
	}
	return n
}

// do runs an iptables program of the variant: "iptables -t nat …".
func (k *kernel) do(command string) string {
	k.t.Helper()
	program, args, _ := strings.Cut(command, " ")
	base, rest, _ := strings.Cut(program, "-")
	if rest != "" {
		rest = "-" + rest
	}
	out, err := exec.Command(base+"-"+string(k.variant)+rest, strings.Fields(args)...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// dump is all rules of both families, without counters and remarks.
func (k *kernel) dump() string {
	k.t.Helper()
	var b strings.Builder
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(k.do(program)) {
			if !strings.HasPrefix(line, "#") {
				head, _, _ := strings.Cut(line, " [")
				b.WriteString(strings.TrimSpace(head) + "\n")
			}
		}
	}
	return b.String()
}

func (k *kernel) open() *backend {
	k.t.Helper()
	b := opened(k.t, k.variant, config(k.t))
	k.t.Cleanup(func() { _ = b.Close() })
	return b
}

func (k *kernel) mustSync(b *backend, prev, want *dataplane.Snapshot) {
	k.t.Helper()
	if err := b.Sync(context.Background(), prev, want); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) mustHold(b *backend, want *dataplane.Snapshot) {
	k.t.Helper()
	o, err := b.Observe(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	if d := o.Differences(dataplane.Expect(want)); len(d) > 0 {
		k.t.Errorf("the kernel is not as wanted: %s", strings.Join(d, "\n"))
	}
}

func config(t testing.TB) dataplane.Config {
	return dataplane.Config{
		Log:                slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Families:           []dataplane.Family{dataplane.IPv4, dataplane.IPv6},
		MasqueradeBit:      14,
		LocalhostNodePorts: true,
	}
}

func opened(t testing.TB, mode restore.Variant, cfg dataplane.Config) *backend {
	t.Helper()
	b, err := open(context.Background(), Options{Mode: string(mode), LockWait: time.Second, LockDir: lockDir()}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mixed is a Snapshot with something of everything, both families.
func mixed() *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	for i, protocol := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			at, all, local := "10.96.0.%d:80", "0.0.0.0:%d", "10.1.0.%d:8080"
			ranges := []string{"198.51.100.0/24", "203.0.113.7/32"}
			if f == dataplane.IPv6 {
				at, all, local = "[fd00:96::%d]:80", "[::]:%d", "[fd00:1::%d]:8080"
				ranges = []string{"2001:db8:1::/64", "2001:db8::7/128"}
			}
			cluster := pool(endpoint(fmt.Sprintf(local, 5+i), true), endpoint(fmt.Sprintf(local, 50+i), false), endpoint(fmt.Sprintf(local, 60+i), false))
			p := port("shop/web:http", protocol,
				frontend(dataplane.ClusterIP, fmt.Sprintf(at, 10+i), cluster, dataplane.SNATNonPods),
				sources(inside(cluster, frontend(dataplane.LoadBalancer, fmt.Sprintf(at, 20+i), pool(endpoint(fmt.Sprintf(local, 5+i), true)), dataplane.SNATNode)), ranges...),
				frontend(dataplane.NodePort, fmt.Sprintf(all, 30080), cluster, dataplane.SNATAll),
			)
			p.ID.Family = f
			p.Affinity = time.Duration(i) * time.Hour
			p.HealthCheck = &dataplane.HealthCheck{Port: 32000}
			empty := port("shop/empty", protocol, frontend(dataplane.ClusterIP, fmt.Sprintf(at, 30+i), &dataplane.Pool{IfEmpty: dataplane.Verdict(i % 2)}, dataplane.SNATNonPods))
			empty.ID.Family = f
			ports = append(ports, p, empty)
		}
	}
	return snapshot(ports...)
}

// TestReadBack demands that rules come back from the kernel exactly as they
// were written, so that a restart and an audit write nothing.
func TestReadBack(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		want := mixed()
		node := *want.Node // with local routes to prefixes
		for _, p := range []string{"10.77.0.0/25", "10.77.0.9/32", "2001:db8:77::/63"} {
			node.NodePorts = append(node.NodePorts, netip.MustParsePrefix(p))
		}
		want.Node = &node
		want.Ports = want.Ports.With(services(300, 3)[100:], nil)
		b := k.open()
		k.mustSync(b, nil, want)
		k.mustHold(b, want)
		have, err := readTables(t.Context(), b.families[0].commands)
		k.must(err)
		for table, chains := range freshChains(want, dataplane.IPv4) {
			for _, c := range chains {
				if got := have[table].Chains[c.Name]; got != c.Body {
					t.Errorf("chain %s: written\n%sread back\n%s", c.Name, c.Body, got)
				}
			}
		}
		k.runs()
		k.mustSync(b, want, want)
		if runs := k.runs(); len(runs) > 0 {
			t.Errorf("nothing changed, and Sync ran %v", runs)
		}
		again := k.open()
		k.runs() // Open tries some rules
		k.mustSync(b, nil, want)
		k.mustSync(again, nil, want)
		if n := k.restores(); n > 0 {
			t.Errorf("an audit and a restart wrote %d times", n)
		}
	})
}

func freshChains(s *dataplane.Snapshot, f dataplane.Family) map[string][]restore.Chain {
	n := testNode(f, s)
	n.localnet = localnet.Switched
	out := map[string][]restore.Chain{}
	for table, t := range fresh(n, s).Tables {
		out[table] = t.Write
	}
	return out
}

// TestForeign demands that other programs' rules stay as they were, and that
// Cleanup leaves nothing else.
func TestForeign(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		for _, p := range []string{"iptables", "ip6tables"} {
			k.do(p + " -t nat -N KUBE-SERVICES")
			k.do(p + " -t nat -A PREROUTING -j KUBE-SERVICES")
			k.do(p + " -t nat -A KUBE-SERVICES -p tcp --dport 7 -j RETURN")
			k.do(p + " -A INPUT -p tcp --dport 9 -j DROP")
			k.do(p + " -P FORWARD DROP")
			k.do(p + " -t mangle -N SY")
		}
		before := k.dump()
		b := k.open()
		first, second := mixed(), snapshot(services(50, 2)...)
		k.mustSync(b, nil, first)
		k.mustSync(b, first, second)
		k.mustSync(b, nil, first)
		for line := range strings.Lines(before) {
			if !strings.Contains(k.dump(), line) {
				t.Errorf("Sync took away %s", line)
			}
		}
		driver := Driver(Options{LockDir: lockDir()})
		for range 2 {
			if err := driver.Cleanup(context.Background(), config(t)); err != nil {
				t.Fatal(err)
			}
			if after := k.dump(); after != before {
				t.Errorf("Cleanup leaves\n%swant\n%s", after, before)
			}
		}
		if on, err := localnet.IsOn(); err != nil || on {
			t.Errorf("after Cleanup, route_localnet is %v, %v; it was off before", on, err)
		}
	})
}

// TestRefused demands that a ServicePort which is refused is named and holds up
// no other, whatever the error says, and is in its place once it is not refused.
func TestRefused(t *testing.T) {
	for name, how := range map[string]string{"the error names the line": byLine, "the error names COMMIT": byCommit} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, k *kernel) {
				const bad = 17 // its endpoints are 10.128.0.34 and 35
				k.refuse("10.128.0.3[45]:", how)
				want := snapshot(services(40, 2)...)
				id := service(dataplane.IPv4, bad, 2).ID
				without := *want
				without.Ports = want.Ports.With(nil, []dataplane.PortID{id})
				b := k.open()
				mustRefuse(t, b.Sync(context.Background(), nil, want), id)
				k.mustHold(b, &without)

				next := without // another Service changes beside it, and it is tried again
				next.Ports = want.Ports.With([]*dataplane.ServicePort{service(dataplane.IPv4, 3, 5)}, nil)
				mustRefuse(t, b.Sync(context.Background(), &without, &next), id)
				held := next
				held.Ports = next.Ports.With(nil, []dataplane.PortID{id})
				k.mustHold(b, &held)

				k.refuse("", how)
				k.mustSync(b, &held, &next)
				k.mustHold(b, &next)

				k.refuse(":9999", how) // it keeps its old form while the new one is refused
				worse := *service(dataplane.IPv4, bad, 2)
				worse.Frontends = []dataplane.Frontend{frontend(dataplane.ClusterIP, worse.Frontends[0].Addr.String(), pool(endpoint("10.128.0.1:9999", false)), dataplane.SNATNone)}
				last := next
				last.Ports = next.Ports.With([]*dataplane.ServicePort{&worse}, nil)
				mustRefuse(t, b.Sync(context.Background(), &next, &last), id)
				k.mustHold(b, &next)
				mustRefuse(t, b.Sync(context.Background(), nil, &last), id)
				k.mustHold(b, &next)
				if dump := k.dump(); strings.Contains(dump, "SY-T-") || strings.Contains(dump, "SY-U-") {
					t.Error("chains of a try are left")
				}
			})
		})
	}
}

// TestRefusedTwice demands that a ServicePort which is refused in its old form as well
// is absent and named, though prev has it, holds up no other, and is back once it is not
// refused.
func TestRefusedTwice(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		const bad = 17
		id := service(dataplane.IPv4, bad, 2).ID
		with := func(s *dataplane.Snapshot, put ...*dataplane.ServicePort) *dataplane.Snapshot {
			out := *s
			out.Ports = s.Ports.With(put, nil)
			return &out
		}
		without := func(s *dataplane.Snapshot) *dataplane.Snapshot {
			out := *s
			out.Ports = s.Ports.With(nil, []dataplane.PortID{id})
			return &out
		}
		old := *service(dataplane.IPv4, bad, 2)
		old.Frontends = append(old.Frontends, frontend(dataplane.ExternalIP, "203.0.113.9:80", old.Frontends[0].Pool, dataplane.SNATNone))
		worse := *service(dataplane.IPv4, bad, 2)
		worse.Frontends[0].Pool = pool(endpoint("10.128.0.1:9999", false))
		first := with(snapshot(services(40, 2)...), &old)
		b := k.open()
		k.mustSync(b, nil, first)

		k.refuse(old.Frontends[0].Pool.Endpoints[0].Addr.String()+"\n:9999", byLine)
		second := with(first, &worse)
		mustRefuse(t, b.Sync(context.Background(), first, second), id)
		k.mustHold(b, without(second))

		prev := with(second, dataplane.Fallback(&old, &worse)) // all that a caller can know
		next := with(prev, service(dataplane.IPv4, 3, 5))
		mustRefuse(t, b.Sync(context.Background(), prev, next), id)
		k.mustHold(b, without(next))

		k.refuse("", byLine)
		last := with(next, &worse)
		k.mustSync(b, next, last)
		k.mustHold(b, last)
	})
}

func mustRefuse(t *testing.T, err error, id dataplane.PortID) {
	t.Helper()
	var partial *dataplane.PartialError
	if !errors.As(err, &partial) || len(partial.Failed) != 1 || partial.Failed[0].ID != id {
		t.Fatalf("Sync: %v, want a refusal of %s alone", err, id)
	}
}

// TestForeignRuleKeepsOurChain demands that a chain which cannot be removed
// holds up nothing.
func TestForeignRuleKeepsOurChain(t *testing.T) {
	eachVariant(t, func(_ *testing.T, k *kernel) {
		first, second := snapshot(services(5, 2)...), snapshot(services(4, 2)...)
		b := k.open()
		k.mustSync(b, nil, first)
		gone := prefixPool + portHash(service(dataplane.IPv4, 4, 2).ID) + "-0"
		k.do("iptables -t nat -N OTHER")
		k.do("iptables -t nat -A OTHER -j " + gone)
		k.mustSync(b, first, second)
		k.mustHold(b, second)
		k.do("iptables -t nat -F OTHER")
		k.mustSync(b, nil, second)
		if strings.Contains(k.dump(), gone) {
			t.Errorf("chain %s is left", gone)
		}
	})
}

// TestBrokenRules demands repair of our rules whatever became of them.
func TestBrokenRules(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		want := mixed()
		b := k.open()
		k.mustSync(b, nil, want)
		whole := k.dump()
		for _, damage := range []string{
			"iptables -t nat -F",
			"iptables -t nat -D PREROUTING 1",
			"iptables -t nat -A PREROUTING -j " + chainServices,
			"iptables -t nat -I OUTPUT -m comment --comment old -j " + chainServices,
			"iptables -t nat -N SY-P-LEFT-BEHIND",
			"iptables -t nat -A " + chainReject + " -j RETURN",
			"ip6tables -F " + chainVerdict,
			"iptables -D FORWARD 1",
			"ip6tables -t nat -R " + chainServices + " 1 -j RETURN",
		} {
			k.do(damage)
			k.mustSync(b, nil, want)
			if dump := k.dump(); dump != whole {
				t.Errorf("after %q, Sync leaves\n%s", damage, dump)
			}
		}
	})
}

// TestDeepTree gives the tree the addresses that make it deepest: nft refuses
// rules that lead too far from the hook.
func TestDeepTree(t *testing.T) {
	eachVariant(t, func(_ *testing.T, k *kernel) {
		var ports []*dataplane.ServicePort
		add := func(f dataplane.Family, raw []byte, number uint16) {
			a, _ := netip.AddrFromSlice(raw)
			p := service(f, len(ports), 1)
			same := p.Frontends[0].Pool
			p.Frontends = []dataplane.Frontend{
				sources(inside(same, frontend(dataplane.ExternalIP, netip.AddrPortFrom(a, number).String(), pool(same.Endpoints...), dataplane.SNATAll)), p.Frontends[0].Addr.Addr().String()+"/32"),
				sources(inside(same, frontend(dataplane.NodePort, netip.AddrPortFrom(f.Unspecified(), number).String(), pool(same.Endpoints...), dataplane.SNATAll)), p.Frontends[0].Addr.Addr().String()+"/32"),
			}
			p.Frontends[0].Inside, p.Frontends[1].Inside = same, same
			ports = append(ports, p)
		}
		for f, length := range map[dataplane.Family]int{dataplane.IPv4: 4, dataplane.IPv6: 16} {
			for bit := 0; bit < 8*length-5; bit++ { // each shares one bit more with the crowd at the end
				a := make([]byte, length)
				a[bit/8] = 1 << (7 - bit%8)
				add(f, a, 1<<(bit%15))
				if bit%15 != bit {
					ports[len(ports)-1].Frontends = ports[len(ports)-1].Frontends[:1]
				}
			}
			for i := range byte(20) {
				a := make([]byte, length)
				a[length-1] = i + 1
				add(f, a, 32+uint16(i))
				if i == 0 { // 1<<5 is taken
					ports[len(ports)-1].Frontends = ports[len(ports)-1].Frontends[:1]
				}
			}
		}
		want := snapshot(ports...)
		b := k.open()
		k.mustSync(b, nil, want)
		k.mustHold(b, want)
	})
}

// TestLocked demands patience with another program that holds the xtables
// lock, and a clear word when that does not end.
func TestLocked(t *testing.T) {
	t.Run("legacy", func(t *testing.T) {
		inNetns(t, func() {
			k := newKernel(t, restore.Legacy)
			b := k.open()
			hold := func(d time.Duration) {
				f, err := os.OpenFile(os.Getenv("XTABLES_LOCKFILE"), os.O_CREATE|os.O_RDONLY, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(d, func() { _ = f.Close() })
			}
			want := mixed()
			hold(1500 * time.Millisecond) // more than one wait
			k.mustSync(b, nil, want)
			hold(time.Hour)
			next := *want
			next.Ports = want.Ports.With(services(101, 1)[100:], nil)
			if err := b.Sync(context.Background(), want, &next); !errors.Is(err, restore.ErrLocked) {
				t.Errorf("Sync: %v, want %v", err, restore.ErrLocked)
			}
		})
	})
}

// TestOneWriter demands that an agent waits for a command that a killed one
// left behind: it holds the lock which it inherited.
func TestOneWriter(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		b := k.open()
		file, err := lock.Open(lockDir(), "iptables")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		orphan := exec.Command("flock", file.Name(), "sleep", "0.5")
		if err := orphan.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if err := b.Sync(ctx, nil, mixed()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Sync while another writes: %v, want it to wait until its context ends", err)
		}
		k.mustSync(b, nil, mixed())
		if err := orphan.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestTryAgain: where the first table was written, and the second one could not be
// had at first, no rule is there twice.
func TestTryAgain(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		if k.variant == restore.NFT {
			return // writes all tables or none
		}
		want := mixed()
		b := k.open()
		k.mustSync(b, nil, want)
		if err := cleanup(context.Background(), Options{LockDir: lockDir()}, config(t)); err != nil {
			t.Fatal(err)
		}
		before := k.dump()
		k.refuse(`^\*nat`, `awk '/^\*nat/ {exit} {print}' %[1]s/$$ | PATH=${PATH#*:} $(basename $0) "$@"; rm %[1]s/refuse; echo "can't initialize iptables table: unable to initialize table 'nat'" >&2`)
		k.mustSync(b, nil, want)
		k.mustHold(b, want)
		for line := range strings.Lines(k.dump()) {
			if strings.Contains(line, "switchyard: ") && strings.Count(k.dump(), line) > 2 { // one in each family
				t.Errorf("written more than once: %s", line)
			}
		}
		if before == k.dump() {
			t.Error("nothing was written")
		}
	})
}

// TestLocalnet follows route_localnet through its life.
func TestLocalnet(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		check := func(when string, want bool, rule string) {
			t.Helper()
			on, err := localnet.IsOn()
			if err != nil || on != want {
				t.Errorf("%s: route_localnet is %v, %v; want %v", when, on, err, want)
			}
			if has := strings.Contains(k.dump(), "-d 127.0.0.0/8"+rule); has != (rule != "") {
				t.Errorf("%s: the rule that keeps neighbours out: %v", when, has)
			}
		}
		with := mixed()
		without := *with
		without.Node = &dataplane.Node{NodePorts: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}
		b := k.open()
		k.mustSync(b, nil, &without)
		check("not wanted", false, "")
		k.mustSync(b, &without, with)
		check("wanted", true, ` -m comment --comment "route_localnet was off"`)
		b = k.open()
		k.mustSync(b, nil, with)
		check("after a restart", true, ` -m comment --comment "route_localnet was off"`)
		k.mustSync(b, with, &without)
		check("no longer wanted", false, "")
		if err := localnet.Switch(true); err != nil {
			t.Fatal(err)
		}
		k.mustSync(b, nil, with)
		check("it was on before", true, " -m conntrack")
		k.mustSync(b, with, &without)
		check("and stays so", true, "")
	})
}

// TestVariantChoice lists what decides between nft and legacy.
func TestVariantChoice(t *testing.T) {
	cases := []struct {
		name    string
		prepare []string // commands
		want    restore.Variant
		why     string
	}{
		{"kubelet uses legacy", []string{"iptables-legacy -t mangle -N KUBE-KUBELET-CANARY", "iptables-nft -t nat -N SWITCHYARD-SERVICES"}, restore.Legacy, "kubelet"},
		{"kubelet uses nft, for IPv6 alone", []string{"ip6tables-nft -t mangle -N KUBE-IPTABLES-HINT", "iptables-legacy -t nat -N SWITCHYARD-SERVICES"}, restore.NFT, "kubelet"},
		{"an earlier Switchyard used legacy", []string{"iptables-legacy -t nat -N SWITCHYARD-SERVICES"}, restore.Legacy, "earlier Switchyard"},
		{"nothing there", nil, "", "default"},
	}
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			inNetns(t, func() {
				for _, p := range c.prepare {
					words := strings.Fields(p)
					if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
						missing(t, fmt.Sprintf("%s: %v: %s", p, err, out))
					}
				}
				v, why, err := restore.Choose(context.Background(), "auto", []dataplane.Family{dataplane.IPv4, dataplane.IPv6}, chainServices)
				if err != nil {
					t.Fatal(err)
				}
				if c.want != "" && v != c.want || !strings.Contains(why, c.why) {
					t.Errorf("chose %s because %s; want %s because of %s", v, why, c.want, c.why)
				}
				if c.prepare == nil && len(xtables.LegacyTables(dataplane.IPv4)) > 0 {
					t.Error("the search made legacy tables")
				}
			})
		})
	}
}

// TestChangeOfVariant demands that the other variant's rules go once they have
// been replaced.
func TestChangeOfVariant(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		want := mixed()
		other := opened(t, k.variant.Other(), config(t))
		k.mustSync(other, nil, want)
		b := k.open()
		k.mustSync(b, nil, want)
		k.mustHold(b, want)
		o, err := other.Observe(context.Background())
		if err != nil || len(o.Frontends) > 0 {
			t.Errorf("%s still has %d frontends, %v", other.families[0].commands.Variant, len(o.Frontends), err)
		}
	})
}

// TestProbe demands that a probe changes no rule.
func TestProbe(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		before := k.dump()
		if err := Driver(Options{Mode: string(k.variant), LockDir: lockDir()}).Works(context.Background(), config(t)); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(k.dump()) {
			if !strings.Contains(before, line) && !strings.HasPrefix(line, "*") && !strings.HasPrefix(line, "COMMIT") && !strings.HasSuffix(line, " ACCEPT\n") {
				t.Errorf("the probe left %s", line)
			}
		}
	})
}

// services makes n IPv4 Services of e endpoints each.
func services(n, e int) []*dataplane.ServicePort {
	ports := make([]*dataplane.ServicePort, 0, n)
	for i := range n {
		ports = append(ports, service(dataplane.IPv4, i, e))
	}
	return ports
}

// service makes the i-th of many Services with a ClusterIP.
func service(f dataplane.Family, i, e int) *dataplane.ServicePort {
	number := func(v4, v6 string, i int) netip.Addr {
		raw := netip.MustParseAddr(v4).AsSlice()
		if f == dataplane.IPv6 {
			raw = netip.MustParseAddr(v6).AsSlice()
		}
		last := len(raw) - 1
		raw[last], raw[last-1], raw[last-2] = byte(i), byte(i>>8), raw[last-2]+byte(i>>16)
		a, _ := netip.AddrFromSlice(raw)
		return a
	}
	p := &dataplane.Pool{}
	for j := range e {
		p.Endpoints = append(p.Endpoints, dataplane.Endpoint{
			Addr:  netip.AddrPortFrom(number("10.128.0.0", "fd00:128::", i*e+j), 8080),
			Local: i < 10 && j == 0,
		})
	}
	return &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: "many", Service: fmt.Sprintf("svc-%d", i), Port: "http", Protocol: dataplane.TCP, Family: f},
		Frontends: []dataplane.Frontend{{Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(number("10.96.0.0", "fd00:96::", i+1), 80), Pool: p, SNAT: dataplane.SNATNonPods}},
	}
}

func snapshot(ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	prefixes := func(s ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	return &dataplane.Snapshot{
		Revision: 1,
		Node: &dataplane.Node{
			Name:      "node-1",
			NodePorts: prefixes("127.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128"),
			LocalPods: dataplane.LocalPods{CIDRs: prefixes("10.128.0.0/16", "fd00:128::/64")},
		},
		ServiceCIDRs: prefixes("10.96.0.0/12", "fd00:96::/108"),
		Ports:        dataplane.MakePorts(ports...),
	}
}

// TestCountsRules: the numbers of rules by table are those that are there,
// without a look at them.
func TestCountsRules(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		b := k.open()
		few, many := snapshot(services(3, 2)...), mixed()
		for i, s := range []struct{ prev, want *dataplane.Snapshot }{{nil, few}, {few, many}, {many, few}, {nil, many}, {many, many}} {
			k.mustSync(b, s.prev, s.want)
			counted := map[string]float64{}
			all, err := b.Counts()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range all {
				if c.Labels[0].Name == "table" {
					counted[c.Name+" "+c.Labels[0].Value+" "+c.Labels[1].Value] = c.Value
				}
			}
			for _, f := range b.families {
				have, err := readTables(t.Context(), f.commands)
				if err != nil {
					t.Fatal(err)
				}
				for table, in := range have {
					n := len(in.Jumps)
					for _, body := range in.Chains {
						n += strings.Count(body, "\n")
					}
					of := " " + table + " " + f.family.String()
					if got := counted["kubeproxy_sync_proxy_rules_iptables_total"+of]; got != float64(n) {
						t.Errorf("Sync %d,%s: counted %v rules, there are %d", i+1, of, got, n)
					}
					if got := counted["kubeproxy_sync_proxy_rules_iptables_last"+of]; s.prev == s.want && got != 0 {
						t.Errorf("Sync %d,%s: a Sync of nothing wrote %v rules", i+1, of, got)
					}
				}
			}
		}
	})
}

// TestOneFamily: where ip6tables is missing or fails, IPv4 can be had alone by
// those who accept that. The other way round, IPv6.
func TestOneFamily(t *testing.T) {
	breakages := map[string]func(k *kernel, base string){
		"fails": func(k *kernel, base string) {
			script := "#!/bin/sh\necho 'cannot initialize table' >&2\nexit 3\n"
			k.must(os.WriteFile(filepath.Join(k.dir, base+"-"+string(k.variant)+"-restore"), []byte(script), 0o755))
		},
		"is missing": func(k *kernel, base string) { // it has another variant's name alone
			for _, name := range []string{base + "-" + string(k.variant), base} {
				k.must(os.WriteFile(filepath.Join(k.dir, name), []byte("#!/bin/sh\nexit 127\n"), 0o755))
			}
		},
	}
	for name, breakage := range breakages {
		for broken, base := range map[dataplane.Family]string{dataplane.IPv4: "iptables", dataplane.IPv6: "ip6tables"} {
			t.Run(name+"/"+broken.String(), func(t *testing.T) {
				eachVariant(t, func(t *testing.T, k *kernel) {
					breakage(k, base)
					cfg, o := config(t), Options{Mode: string(k.variant), LockDir: lockDir()}
					if err := Driver(o).Works(t.Context(), cfg); err == nil {
						t.Error("both families can be had, says Works")
					}
					cfg.SomeFamilies = true
					k.must(Driver(o).Works(t.Context(), cfg))
					b, err := open(t.Context(), o, cfg)
					k.must(err)
					t.Cleanup(func() { _ = b.Close() })
					have := dataplane.FamiliesOf(b, cfg.Families)
					if len(have) != 1 || have[0] == broken {
						t.Fatalf("it programs %v", have)
					}
					want := snapshot()
					for p := range mixed().Ports.All() {
						if p.ID.Family != broken {
							want.Ports = want.Ports.With([]*dataplane.ServicePort{p}, nil)
						}
					}
					k.mustSync(b, nil, want)
					k.mustHold(b, want)
				})
			})
		}
	}
}

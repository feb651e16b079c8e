package nftables

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/backendtest"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestRules: the kernel takes our rules, nft can print them, and what is read
// back is what was written.
func TestRules(t *testing.T) {
	kerneltest.NeedMain(t)
	t.Cleanup(func() { _ = cleanup() })
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		n, port := sample(f)
		if err := try(n, port); err != nil {
			t.Fatal(err)
		}
		table := nft.NewTable(f, spec(f), &nft.Counts{})
		if state, err := table.Read(); err != nil || state.Present {
			t.Fatalf("a try left a table, or %v", err)
		}
		d, err := whole(table, n, affinity.NewIDs().Of, &nft.State{}, localnet.Off.Notes(chainInput))
		if err != nil {
			t.Fatal(err)
		}
		d.WantPlan(d.plans.plan(port, 1))
		if err := table.Write(&d.First, nil); err != nil {
			t.Fatal(err)
		}
		state, err := table.Read()
		if err != nil {
			t.Fatal(err)
		}
		_ = table.Close()
		if !state.Whole() || len(state.Chains) < 25 || len(state.Elements) < 20 {
			t.Errorf("%s: read back strange %t, %d chains, elements %v", f, state.Strange, len(state.Chains), state.Elements)
		}
	}
	out := list(t)
	for _, rule := range []string{
		"meta priority set ip daddr . meta l4proto . th dport map @frontends",
		"meta priority set meta l4proto . th dport map @node-frontends",
		"meta priority & fff3:ffff vmap @ways",
		"dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints",
		"update @affinity { meta priority . ip6 saddr timeout 1s : jhash ip6 daddr . th dport mod 4294967295 seed 0x53594144 }",
	} {
		if !strings.Contains(out, rule) {
			t.Errorf("nft does not list %q in\n%s", rule, out)
		}
	}
}

// list is what nft prints of all tables, as text, after it has done so as JSON.
func list(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		kerneltest.Unable(t, err)
	}
	if out, err := exec.Command("nft", "-j", "list", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("nft cannot list our tables as JSON: %v\n%s", err, out)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft cannot list our tables: %v\n%s", err, out)
	}
	return string(out)
}

// TestRefused: a ServicePort that the kernel does not take is named, and holds
// up no other. It is tried again when it changes.
func TestRefused(t *testing.T) {
	b := opened(t, dataplane.IPv4)
	good := port("good", frontend(dataplane.ClusterIP, "10.96.0.1:80", pool("10.244.1.5:80"), dataplane.SNATNone))
	bad := port("bad", frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("10.244.1.6:80"), dataplane.SNATNone))
	bad.Frontends[0].Sources = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")} // no key of IPv4 has room for it
	refused := func(prev, want *dataplane.Snapshot) {
		t.Helper()
		var partial *dataplane.PartialError
		err := b.Sync(t.Context(), prev, want)
		if !errors.As(err, &partial) || len(partial.Failed) != 1 || partial.Failed[0].ID != bad.ID {
			t.Fatalf("Sync returned %v; want an error that names %s", err, bad.ID)
		}
	}
	served := func(want ...*dataplane.ServicePort) {
		t.Helper()
		backendtest.MustHold(t, b, snapshot(want...))
	}
	refused(nil, snapshot(good, bad))
	served(good)
	other := port("other", frontend(dataplane.ClusterIP, "10.96.0.2:80", pool("10.244.1.5:80"), dataplane.SNATNone))
	refused(snapshot(good), snapshot(good, other, bad))
	served(good, other)
	mended := *bad
	mended.Frontends = []dataplane.Frontend{bad.Frontends[0]}
	mended.Frontends[0].Sources = nil
	backendtest.MustSync(t, b, snapshot(good, other), snapshot(good, other, &mended))
	served(good, other, &mended)
}

// TestRefusedAgain: a ServicePort that the kernel refused is served as soon as it is
// offered again and the kernel takes it, though it is the same one.
func TestRefusedAgain(t *testing.T) {
	good := port("good", frontend(dataplane.ClusterIP, "10.96.0.1:80", pool("10.244.1.5:80"), dataplane.SNATNone))
	for _, tc := range []struct {
		name string
		prev *dataplane.Snapshot // of the Sync that tries again
	}{{"a change", snapshot(good)}, {"a repair", nil}} {
		t.Run(tc.name, func(t *testing.T) {
			b := opened(t, dataplane.IPv4)
			late := port("late", frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("10.244.1.6:80"), dataplane.SNATNone))
			late.Frontends[0].Sources = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")} // no key of IPv4 has room for it
			var partial *dataplane.PartialError
			for _, prev := range []*dataplane.Snapshot{nil, tc.prev} {
				if err := b.Sync(t.Context(), prev, snapshot(good, late)); !errors.As(err, &partial) || len(partial.Failed) != 1 || partial.Failed[0].ID != late.ID {
					t.Fatalf("Sync returned %v; want an error that names %s", err, late.ID)
				}
			}
			late.Frontends[0].Sources = nil // stands for a kernel that has become able
			backendtest.MustSync(t, b, tc.prev, snapshot(good, late))
			backendtest.MustHold(t, b, snapshot(good, late))
		})
	}
}

// TestFamilyAlone: a table that the kernel does not take leaves the other family's
// alone, and is written when it does.
func TestFamilyAlone(t *testing.T) {
	in6 := func() *dataplane.ServicePort { return example(dataplane.IPv6, netip.MustParseAddr("2001:db8::1")) }
	b := opened(t, dataplane.IPv4, dataplane.IPv6)
	first := snapshot(append(services(20, 3), in6())...)
	backendtest.MustSync(t, b, nil, first)
	well := b.families[1].table
	broken := spec(dataplane.IPv6)
	broken.Name = strings.Repeat("x", 300)
	b.families[1].table = nft.NewTable(dataplane.IPv6, broken, &b.counts)
	b.families[1].held = nil
	want := snapshot(append(services(21, 3), in6())...)
	var failed *dataplane.FamilyError
	if err := b.Sync(t.Context(), first, want); !errors.As(err, &failed) || len(failed.Failed) != 1 || !failed.Has(dataplane.IPv6) {
		t.Fatalf("Sync returned %v; want an error of IPv6 alone", err)
	}
	b.Hold([]dataplane.Family{dataplane.IPv6})
	inForce := *want
	inForce.Ports = dataplane.Replace(want.Ports, first.Ports, func(id dataplane.PortID) bool { return id.Family == dataplane.IPv6 })
	before := b.counts
	backendtest.MustSync(t, b, &inForce, &inForce)
	backendtest.MustSync(t, b, nil, &inForce)
	if b.counts != before {
		t.Errorf("nothing changed, and Syncs wrote: %+v, then %+v", before, b.counts)
	}
	_ = b.families[1].table.Close()
	b.families[1].table = well
	b.Hold(nil)
	backendtest.MustSync(t, b, &inForce, want)
	backendtest.MustHold(t, b, want)
}

// TestObserveAlongside: the tables are read while Syncs change them (for -race),
// and what is read after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	b := opened(t, dataplane.IPv4, dataplane.IPv6)
	var ports []*dataplane.ServicePort
	for _, p := range services(200, 3) {
		p.Affinity = time.Hour
		ports = append(ports, p)
	}
	backendtest.ObserveAlongside(t, b, snapshot(ports...), snapshot(ports[:100]...))
}

// TestNothingToDo: an agent that starts where all is as it is wanted writes
// nothing, and neither does a Sync without a change.
func TestNothingToDo(t *testing.T) {
	b := opened(t, dataplane.IPv4, dataplane.IPv6)
	want := snapshot(append(services(20, 3), example(dataplane.IPv4, netip.MustParseAddr("192.0.2.1")), example(dataplane.IPv6, netip.MustParseAddr("2001:db8::1")))...)
	backendtest.MustSync(t, b, nil, want)
	before := b.counts
	backendtest.MustSync(t, b, nil, want)
	backendtest.MustSync(t, b, want, want)
	if b.counts != before {
		t.Errorf("written: %+v, and after Syncs with nothing to do %+v", before, b.counts)
	}
	have, err := b.Observe(t.Context())
	if err != nil || len(have.Other) > 0 {
		t.Errorf("Observe finds %q, %v", have.Other, err)
	}
}

// TestRangesThatOverlap: source ranges become narrower and wider, and an address
// goes from one Service to another, while other Services change as well.
func TestRangesThatOverlap(t *testing.T) {
	b := opened(t, dataplane.IPv4)
	limited := func(name, endpoint string, ranges ...string) *dataplane.ServicePort {
		p := port(name, frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool(endpoint), dataplane.SNATNone))
		for _, r := range ranges {
			p.Frontends[0].Sources = append(p.Frontends[0].Sources, netip.MustParsePrefix(r))
		}
		return p
	}
	other := func(endpoint string) *dataplane.ServicePort {
		return port("other", frontend(dataplane.ClusterIP, "10.96.0.1:80", pool(endpoint), dataplane.SNATNone))
	}
	var prev *dataplane.Snapshot
	for i, want := range []*dataplane.Snapshot{
		snapshot(limited("lb", "10.244.1.5:80", "10.0.0.0/8"), other("10.244.1.1:80")),
		snapshot(limited("lb", "10.244.1.5:80", "10.0.0.0/16"), other("10.244.1.2:80")),
		snapshot(limited("lb", "10.244.1.5:80", "10.0.0.0/8", "192.0.2.0/24"), other("10.244.1.3:80")),
		snapshot(limited("heir", "10.244.1.6:80", "10.0.0.0/9", "192.0.2.0/25"), other("10.244.1.4:80")),
		snapshot(limited("heir", "10.244.1.6:80"), other("10.244.1.4:80")),
	} {
		for _, before := range []*dataplane.Snapshot{prev, nil} {
			if prev != nil {
				backendtest.MustSync(t, b, nil, prev)
			}
			backendtest.MustSync(t, b, before, want)
			have, err := b.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diffs := have.Differences(dataplane.Expect(want)); len(diffs) > 0 {
				t.Errorf("step %d: the kernel is not as wanted: %v", i, diffs)
			}
		}
		prev = want
	}
}

// TestLeftovers: whatever somebody put into our table, a Sync makes it as it is
// wanted.
func TestLeftovers(t *testing.T) {
	want := snapshot(services(3, 2)...)
	for _, act := range []string{
		"add chain ip switchyard aaa; add chain ip switchyard bbb; add rule ip switchyard bbb jump aaa",
		"add chain ip switchyard aaa; add map ip switchyard theirs { type mark : verdict; elements = { 1 : jump pick-2 } }",
		"delete table ip switchyard; add table ip switchyard; add set ip switchyard cluster-ips { type mark; }",
		"add table ip switchyard { flags dormant; }",
		"add chain ip switchyard prerouting { policy drop; }",
		"flush ruleset",
	} {
		b := opened(t, dataplane.IPv4)
		backendtest.MustSync(t, b, nil, want)
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(act + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v\n%s", act, err, out)
		}
		have, err := b.Observe(t.Context())
		if err != nil || len(have.Differences(dataplane.Expect(want))) == 0 {
			t.Errorf("%s: Observe finds nothing, %v", act, err)
		}
		backendtest.MustSync(t, b, nil, want)
		if have, err = b.Observe(t.Context()); err != nil || len(have.Differences(dataplane.Expect(want))) > 0 {
			t.Errorf("%s: after a repair Observe finds %q, %v", act, have.Differences(dataplane.Expect(want)), err)
		}
	}
}

// TestChangeSize: one endpoint of one Service is as many elements and
// transactions with 10 Services as with 2,000, and no rule.
func TestChangeSize(t *testing.T) {
	size := func(n int) nft.Counts {
		b := opened(t, dataplane.IPv4)
		prev := snapshot(services(n, 3)...)
		next := withoutLast(prev)
		backendtest.MustSync(t, b, nil, prev)
		backendtest.MustSync(t, b, prev, next) // makes the chain for pools of two
		backendtest.MustSync(t, b, next, prev)
		before := b.counts
		backendtest.MustSync(t, b, prev, next)
		return nft.Counts{
			Transactions: b.counts.Transactions - before.Transactions, Rules: b.counts.Rules - before.Rules, Elements: b.counts.Elements - before.Elements,
		}
	}
	few, many := size(10), size(2000)
	if few != many {
		t.Errorf("a change is %+v with 10 Services and %+v with 2,000", few, many)
	}
}

// TestDisturbed: somebody else's change to our table is noticed, our own and
// those to other tables are not.
func TestDisturbed(t *testing.T) {
	b := opened(t, dataplane.IPv4, dataplane.IPv6)
	want := snapshot(services(3, 2)...)
	backendtest.MustSync(t, b, nil, want)
	if _, err := b.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	noticed := func() bool {
		select {
		case <-b.Disturbed():
			return true
		case <-time.After(300 * time.Millisecond):
			return false
		}
	}
	backendtest.MustSync(t, b, want, withoutLast(want))
	if noticed() || !b.Undisturbed() {
		t.Error("our own change counts as another's")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v\n%s", args, err, out)
		}
	}
	run("add", "table", "ip", "other")
	if noticed() || !b.Undisturbed() {
		t.Error("a change to another table counts as one to ours")
	}
	for _, act := range [][]string{
		{"flush", "map", "ip", "switchyard", "frontends"}, {"add", "rule", "ip6", "switchyard", "services", "accept"}, {"flush", "ruleset"},
	} {
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(act...)
		if !noticed() || b.Undisturbed() {
			t.Errorf("nft %v is not noticed", act)
		}
	}
}

// TestSecondLook: no packet finds nothing while its frontend changes from one
// size of pool to another, each with a chain of its own. Before there was a second
// look, one flow in some thousands was rejected.
func TestSecondLook(t *testing.T) {
	b := opened(t, dataplane.IPv4)
	server, to := serveUDP(t)
	var sizes []*dataplane.Snapshot
	for n := 1; n <= 3; n++ {
		p := &dataplane.Pool{}
		for range n {
			p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: server})
		}
		web := port("web", frontend(dataplane.ClusterIP, to.String(), p, dataplane.SNATNone))
		web.ID.Protocol = dataplane.UDP
		sizes = append(sizes, snapshot(web))
	}
	backendtest.MustSync(t, b, nil, sizes[0])
	stop, asked := make(chan struct{}), make(chan error, 1)
	go func() { asked <- askUDP(to, stop) }()
	for i, start := 0, time.Now(); time.Since(start) < 1500*time.Millisecond; i++ {
		backendtest.MustSync(t, b, sizes[i%3], sizes[(i+1)%3])
	}
	close(stop)
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

// TestRefusedMove: a ServicePort that is refused as it moves to another address
// keeps none that is another's by now.
func TestRefusedMove(t *testing.T) {
	b := opened(t, dataplane.IPv4)
	const x, y = "10.97.0.1:80", "10.97.0.2:80"
	before := port("zz", frontend(dataplane.LoadBalancer, x, pool("10.244.6.6:80"), dataplane.SNATNone))
	backendtest.MustSync(t, b, nil, snapshot(before))
	moved := port("zz", frontend(dataplane.LoadBalancer, y, pool("10.244.6.6:80"), dataplane.SNATNone))
	for i := range 5000 {
		moved.Frontends[0].Sources = append(moved.Frontends[0].Sources, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 7), byte(i << 1)}), 32))
	}
	heir := port("heir", frontend(dataplane.LoadBalancer, x, pool("10.244.1.1:80"), dataplane.SNATNone))
	var partial *dataplane.PartialError
	if err := b.Sync(t.Context(), snapshot(before), snapshot(heir, moved)); !errors.As(err, &partial) || len(partial.Failed) != 1 || partial.Failed[0].ID != moved.ID {
		t.Fatalf("Sync returned %v; want an error that names %s", err, moved.ID)
	}
	backendtest.MustHold(t, b, snapshot(heir))
}

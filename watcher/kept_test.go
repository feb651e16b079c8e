package watcher

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/switchyard-io/switchyard/watcher/facts"
)

// TestAKnownFactIsReplacedByAnotherFactAlone: what a Node that says less than
// before leaves in force, and for how long. NodeWait is 30 s, PodCIDRWait 5 min.
func TestAKnownFactIsReplacedByAnotherFactAlone(t *testing.T) {
	whole := func() *facts.Node {
		n := hereNode()
		n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
		return n
	}
	with := func(change func(*facts.Node)) facts.Change {
		n := whole()
		change(n)
		return putNode(n)
	}
	bare := with(func(n *facts.Node) { n.IPs, n.PodCIDRs, n.Zone = nil, nil, "" })
	gone := facts.Change{Nodes: facts.Delta[facts.Node]{Remove: []facts.Name{{Name: "here"}}}}
	const all, none = "NodePorts [192.0.2.1/32], pods [10.244.1.0/24], zone z1", "NodePorts [], pods [], zone "
	type step struct {
		change facts.Change
		after  time.Duration
		want   string
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"registered again, bare, then filled in", []step{{gone, time.Hour, all}, {bare, time.Second, all}, {putNode(whole()), time.Hour, all}}},
		{"the address is momentarily gone", []step{{with(func(n *facts.Node) { n.IPs = nil }), 29 * time.Second, all}, {putNode(whole()), time.Hour, all}}},
		{"it stays bare", []step{{bare, 29 * time.Second, all}, {facts.Change{}, 2 * time.Second, "NodePorts [], pods [10.244.1.0/24], zone "}, {facts.Change{}, 4 * time.Minute, "NodePorts [], pods [10.244.1.0/24], zone "},
			{facts.Change{}, time.Minute, none}}},
		{"it is told again while it is bare: no new time", []step{{bare, 20 * time.Second, all}, {bare, 20 * time.Second, "NodePorts [], pods [10.244.1.0/24], zone "}}},
		{"another time has its own time", []step{{bare, 20 * time.Second, all}, {putNode(whole()), time.Second, all}, {bare, 20 * time.Second, all}}},
		{"each fact has its own time", []step{{bare, 20 * time.Second, all}, {with(func(n *facts.Node) { n.PodCIDRs = nil }), 20 * time.Second, all}, {bare, 20 * time.Second, all}}},
		{"other facts are taken at once", []step{{with(func(n *facts.Node) {
			n.IPs, n.PodCIDRs, n.Zone = []netip.Addr{netip.MustParseAddr("192.0.2.2")}, []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}, "z2"
		}), 0, "NodePorts [192.0.2.2/32], pods [10.244.2.0/24], zone z2"}}},
		{"a final Node says all that it will", []step{{with(func(n *facts.Node) { n.IPs, n.PodCIDRs, n.Zone, n.Final = nil, nil, "", true }), 0, none}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := watch(t, func(o *Options) { o.DetectLocal.Mode, o.NodePortAddresses = NodeCIDR, []string{"primary"} })
				w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")})
				w.Apply(known([]*facts.Service{svc("web", 1)}, nil, whole()))
				for i, s := range c.steps {
					w.Apply(s.change)
					time.Sleep(s.after)
					synctest.Wait()
					n := w.last().Node
					if got := fmt.Sprintf("NodePorts %v, pods %v, zone %s", n.NodePorts, n.LocalPods.CIDRs, n.Zone); got != s.want {
						t.Errorf("step %d: got %s\nwant %s", i, got, s.want)
					}
				}
				w.kept.stop()
			})
		})
	}
}

// TestFamiliesAreKeptApart: a dual-stack Node that comes back with the addresses
// of one family keeps those of the other, in their order.
func TestFamiliesAreKeptApart(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	other := netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct{ before, said, want []netip.Addr }{
		{[]netip.Addr{four, six}, []netip.Addr{four}, []netip.Addr{four, six}},
		{[]netip.Addr{six, four}, []netip.Addr{other}, []netip.Addr{six, other}},
		{[]netip.Addr{four, six}, []netip.Addr{six}, []netip.Addr{four, six}},
		{[]netip.Addr{four, six}, nil, []netip.Addr{four, six}},
		{[]netip.Addr{four}, []netip.Addr{other}, []netip.Addr{other}},
		{[]netip.Addr{four}, []netip.Addr{four, six}, []netip.Addr{four, six}},
	} {
		k := keptFacts{log: slog.New(slog.DiscardHandler), nodeWait: time.Hour, podCIDRWait: time.Hour}
		got := k.complete(&facts.Node{IPs: c.said}, &facts.Node{IPs: c.before}, func() {})
		k.stop()
		if !slices.Equal(got.IPs, c.want) {
			t.Errorf("%v, then %v: kept %v, want %v", c.before, c.said, got.IPs, c.want)
		}
	}
}

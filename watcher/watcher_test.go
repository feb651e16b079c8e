package watcher

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

var errBroken = errors.New("broken")

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Options)
		want   string // in the error; "": none
	}{
		{"as they should be", func(*Options) {}, ""},
		{"no node name", func(o *Options) { o.NodeName = " " }, "node name"},
		{"no logger", func(o *Options) { o.Log = nil }, "logger"},
		{"no family", func(o *Options) { o.Families = nil }, "family"},
		{"an unknown mode", func(o *Options) { o.DetectLocal.Mode = "Guess" }, `"Guess"`},
		{"a bridge without its name", func(o *Options) { o.DetectLocal.Mode = BridgeInterface }, "name of an interface"},
		{"nodePortAddresses", func(o *Options) { o.NodePortAddresses = []string{"192.0.2.1"} }, "nodePortAddresses[0]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options(slog.New(slog.DiscardHandler))
			tc.change(&o)
			_, err := New(o, func() {})
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, wanted %q", err, tc.want)
			}
		})
	}
}

// TestLocalPods is how pods are told: KUBE-PROXY §1.13.
func TestLocalPods(t *testing.T) {
	cidrs := func(in ...string) (out []netip.Prefix) {
		for _, s := range in {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	node := hereNode()
	node.PodCIDRs = cidrs("10.244.1.0/24", "fd00:1::/64")
	for _, tc := range []struct {
		name   string
		detect DetectLocal
		want   dataplane.LocalPods
	}{
		{"no mode and no CIDR: no detector", DetectLocal{}, dataplane.LocalPods{}},
		{"ClusterCIDR: the first of each family", DetectLocal{Mode: ClusterCIDR, ClusterCIDRs: cidrs("fd00::/48", "10.244.0.0/16", "10.245.0.0/16")},
			dataplane.LocalPods{CIDRs: cidrs("10.244.0.0/16", "fd00::/48")}},
		{"NodeCIDR", DetectLocal{Mode: NodeCIDR, ClusterCIDRs: cidrs("10.0.0.0/8")}, dataplane.LocalPods{CIDRs: node.PodCIDRs}},
		{"BridgeInterface", DetectLocal{Mode: BridgeInterface, Interface: "cni0"}, dataplane.LocalPods{Interface: "cni0"}},
		{"InterfaceNamePrefix", DetectLocal{Mode: InterfaceNamePrefix, Interface: "veth"}, dataplane.LocalPods{InterfacePrefix: "veth"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := watch(t, func(o *Options) { o.DetectLocal = tc.detect })
			w.SetAddresses(nil)
			w.Apply(known(nil, nil, node))
			got := w.last().Node.LocalPods
			if !slices.Equal(got.CIDRs, tc.want.CIDRs) || got.Interface != tc.want.Interface || got.InterfacePrefix != tc.want.InterfacePrefix {
				t.Errorf("got %+v, wanted %+v", got, tc.want)
			}
		})
	}
}

// TestFirstSnapshot is what the first Snapshot waits for: KUBE-PROXY §0.
func TestFirstSnapshot(t *testing.T) {
	services := facts.Change{Services: facts.Delta[facts.Service]{All: true, Put: []*facts.Service{svc("web", 1)}}}
	sets := facts.Change{Slices: facts.Delta[facts.Slice]{All: true, Put: []*facts.Slice{set("web-1", "web", 1)}}}
	noNode := facts.Change{Nodes: facts.Delta[facts.Node]{All: true}}
	t.Run("one Snapshot, when all is known", func(t *testing.T) {
		w := watch(t, nil)
		for _, step := range []struct {
			waiting string
			do      func()
		}{
			{"Services", func() {}},
			{"Services", func() { w.SetAddresses(nil) }},
			{"EndpointSlices", func() { w.Apply(services) }},
			{"the Node object", func() { w.Apply(sets) }},
			{"the Node object", func() { w.Apply(noNode) }},
			{"its addresses", func() { w.Apply(putNode(&facts.Node{Eligible: true})) }},
		} {
			step.do()
			if s := w.Status(); s.Synced || w.published() != 0 || s.Waiting != step.waiting {
				t.Fatalf("waits for %q and published %d, should wait for %q", s.Waiting, w.published(), step.waiting)
			}
		}
		w.Apply(putNode(hereNode()))
		if s := w.Status(); !s.Synced || !s.NodeEligible || w.published() != 1 || w.last().Revision != 1 || w.last().Ports.Len() != 1 {
			t.Fatalf("%+v, published %d", s, w.published())
		}
	})
	t.Run("single objects do not make a kind known", func(t *testing.T) {
		w := watch(t, nil)
		w.SetAddresses(nil)
		w.Apply(put(svc("web", 1)))
		w.Apply(putSlices(set("web-1", "web", 1)))
		w.Apply(putNode(hereNode()))
		if w.published() != 0 {
			t.Error("published")
		}
	})
	t.Run("without the Node after a while", func(t *testing.T) {
		w := watch(t, func(o *Options) { o.NodeWait = 20 * time.Millisecond })
		w.SetAddresses(nil)
		w.Apply(known([]*facts.Service{svc("web", 1)}, nil, nil))
		if w.published() != 0 {
			t.Error("did not wait")
		}
		within(t, "a Snapshot without the Node", func() bool { return w.published() == 1 })
		if w.Status().NodeEligible {
			t.Error("a Node that was never seen is eligible")
		}
	})
	t.Run("NodeCIDR waits for the pod ranges, and follows them", func(t *testing.T) {
		w := watch(t, func(o *Options) { o.DetectLocal.Mode = NodeCIDR })
		w.SetAddresses(nil)
		w.Apply(known(nil, nil, hereNode()))
		if s := w.Status(); s.Waiting != "its podCIDRs" {
			t.Errorf("waits for %q", s.Waiting)
		}
		for _, cidr := range []string{"10.244.1.0/24", "10.244.9.0/24"} {
			node := hereNode()
			node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(cidr)}
			w.Apply(putNode(node))
			if got := w.last().Node.LocalPods.CIDRs; !slices.Equal(got, node.PodCIDRs) {
				t.Errorf("got %v, wanted %v", got, node.PodCIDRs)
			}
		}
	})
	t.Run("a final Node has nothing to wait for", func(t *testing.T) {
		w := watch(t, func(o *Options) { o.DetectLocal.Mode = NodeCIDR })
		w.SetAddresses(nil)
		w.Apply(known(nil, nil, &facts.Node{Eligible: true, Final: true}))
		if w.published() != 1 {
			t.Error("waits")
		}
	})
}

// synced is a Watcher that knows shop/a and shop/b with two endpoints each.
func synced(t *testing.T) *watched {
	t.Helper()
	w := watch(t, nil)
	w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")})
	w.Apply(known([]*facts.Service{svc("a", 1), svc("b", 2)}, []*facts.Slice{set("a-1", "a", 1, 2), set("b-1", "b", 3, 4)}, hereNode()))
	if w.published() != 1 {
		t.Fatalf("published %d", w.published())
	}
	return w
}

// TestAChangeTouchesWhatItIsAbout: what an event publishes, and what stays as it was.
func TestAChangeTouchesWhatItIsAbout(t *testing.T) {
	hinted := func(n int) *facts.Slice {
		s := set("b-1", "b", 3, 4)
		for i := range s.Endpoints {
			s.Endpoints[i].Place = facts.MakePlace("", "", "z1")
		}
		s.Endpoints[n].Place = facts.MakePlace("", "", "z2")
		return s
	}
	with := func(change func(*facts.Service)) facts.Change {
		s := svc("a", 1)
		s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
		s.ExternalLocal, s.HealthCheckPort = true, 32000
		if change != nil {
			change(s)
		}
		return put(s)
	}
	ranges := func(s *facts.Service) { s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }
	for _, tc := range []struct {
		name      string
		before    facts.Change
		change    facts.Change
		published bool
		diff      []string // Services whose ports differ by pointer
	}{
		{"an endpoint more", facts.Change{}, putSlices(set("a-1", "a", 1, 2, 3)), true, []string{"a"}},
		{"a second slice", facts.Change{}, putSlices(set("a-2", "a", 7)), true, []string{"a"}},
		{"the same again, with another annotation", facts.Change{}, putSlices(func() *facts.Slice {
			s := set("a-1", "a", 1, 2)
			s.Trigger = time.Now()
			return s
		}()), false, nil},
		{"the same Service again", facts.Change{}, put(svc("a", 1)), false, nil},
		{"all again", facts.Change{}, known([]*facts.Service{svc("a", 1), svc("b", 2)}, []*facts.Slice{set("a-1", "a", 1, 2), set("b-1", "b", 3, 4)}, hereNode()), false, nil},
		{"all again, one Service gone", facts.Change{}, known([]*facts.Service{svc("b", 2)}, []*facts.Slice{set("a-1", "a", 1, 2), set("b-1", "b", 3, 4)}, hereNode()), true, []string{"a"}},
		{"all again, one slice gone", facts.Change{}, known([]*facts.Service{svc("a", 1), svc("b", 2)}, []*facts.Slice{set("a-1", "a", 1, 2)}, hereNode()), true, []string{"b"}},
		{"the order of endpoints", facts.Change{}, putSlices(set("a-1", "a", 2, 1)), false, nil},
		{"a slice of a Service that does not exist", facts.Change{}, putSlices(set("c-1", "c", 9)), false, nil},
		{"and then the Service", putSlices(set("c-1", "c", 9)), put(svc("c", 3)), true, []string{"c"}},
		{"its affinity", with(nil), with(func(s *facts.Service) { s.Affinity = time.Hour }), true, []string{"a"}},
		{"its source ranges", with(nil), with(ranges), true, []string{"a"}},
		{"its internal policy", with(nil), with(func(s *facts.Service) { s.InternalLocal = true }), true, []string{"a"}},
		{"its external policy", with(nil), with(func(s *facts.Service) { s.ExternalLocal = false }), true, []string{"a"}},
		{"its health check port", with(nil), with(func(s *facts.Service) { s.HealthCheckPort++ }), true, []string{"a"}},
		{"its age, where nobody contests it", with(nil), with(func(s *facts.Service) { s.Created = 7 }), false, nil},
		{"a local endpoint, for the health check too", with(nil), putSlices(func() *facts.Slice {
			s := set("a-1", "a", 1, 2)
			s.Endpoints[0].Local = true
			return s
		}()), true, []string{"a"}},
		{"the node's address, where source ranges look at it", with(ranges), putNode(func() *facts.Node {
			n := hereNode()
			n.IPs = []netip.Addr{netip.MustParseAddr("198.51.100.9")}
			return n
		}()), true, []string{"a"}},
		{"a Service removed", facts.Change{}, facts.Change{Services: facts.Delta[facts.Service]{Remove: removed("b")}}, true, []string{"b"}},
		{"a slice removed", facts.Change{}, facts.Change{Slices: facts.Delta[facts.Slice]{Remove: removed("b-1")}}, true, []string{"b"}},
		{"what does not exist removed", facts.Change{}, facts.Change{Services: facts.Delta[facts.Service]{Remove: removed("x")}, Slices: facts.Delta[facts.Slice]{Remove: removed("x")}}, false, nil},
		{"a slice goes to another Service", facts.Change{}, putSlices(set("a-1", "b", 1, 2)), true, []string{"a", "b"}},
		{"the node's zone, where topology looks at it", putSlices(hinted(0)), putNode(func() *facts.Node { n := hereNode(); n.Zone = "z2"; return n }()), true, []string{"b"}},
		{"a taint on the node", facts.Change{}, putNode(func() *facts.Node { n := hereNode(); n.Eligible = false; return n }()), false, nil},
		{"the Node deleted: its facts stay", putSlices(hinted(0)), facts.Change{Nodes: facts.Delta[facts.Node]{Remove: []facts.Name{{Name: "here"}}}}, false, nil},
		{"a ServiceCIDR", facts.Change{}, facts.Change{ServiceCIDRs: facts.Delta[facts.ServiceCIDR]{All: true, Put: []*facts.ServiceCIDR{{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}}}}, true, nil},
		{"no ServiceCIDRs", facts.Change{}, facts.Change{ServiceCIDRs: facts.Delta[facts.ServiceCIDR]{All: true}}, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := synced(t)
			w.Apply(tc.before)
			first := w.last()
			w.Apply(tc.change)
			if got := w.last() != first; got != tc.published {
				t.Fatalf("published: %v", got)
			}
			var diff []string
			for old, cur := range dataplane.Diff(first.Ports, w.last().Ports) {
				if old == nil {
					old = cur
				}
				diff = append(diff, old.ID.Service)
			}
			if !slices.Equal(diff, tc.diff) {
				t.Errorf("differ: %v, wanted %v", diff, tc.diff)
			}
			if tc.published && w.last().Revision != first.Revision+1 {
				t.Errorf("revision %d after %d", w.last().Revision, first.Revision)
			}
		})
	}
}

// TestPodRangesOfAFamilyAppear: masquerading follows who can be told from a pod.
func TestPodRangesOfAFamilyAppear(t *testing.T) { // KUBE-PROXY §1.13
	w := watch(t, func(o *Options) { o.DetectLocal.Mode = NodeCIDR })
	w.SetAddresses(nil)
	dual := svc("a", 1)
	dual.ClusterIPs = append(dual.ClusterIPs, netip.MustParseAddr("fd00:96::1"))
	node := hereNode()
	node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	w.Apply(known([]*facts.Service{dual}, nil, node))
	check := func(want map[dataplane.Family]dataplane.SNAT) {
		t.Helper()
		for p := range w.last().Ports.All() {
			if got := p.Frontends[0].SNAT; got != want[p.ID.Family] {
				t.Errorf("%s: %s", p.ID, got)
			}
		}
	}
	check(map[dataplane.Family]dataplane.SNAT{dataplane.IPv4: dataplane.SNATNonPods, dataplane.IPv6: dataplane.SNATNone})
	both := *node
	both.PodCIDRs = append(slices.Clone(node.PodCIDRs), netip.MustParsePrefix("fd00:1::/64"))
	w.Apply(putNode(&both))
	check(map[dataplane.Family]dataplane.SNAT{dataplane.IPv4: dataplane.SNATNonPods, dataplane.IPv6: dataplane.SNATNonPods})
}

func TestAddressesAreFollowed(t *testing.T) { // KUBE-PROXY §1.10, better than its §6.5
	w := synced(t)
	first := w.last()
	w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")})
	if w.last() != first {
		t.Error("the same addresses published a Snapshot")
	}
	w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")})
	if got := w.last().Node.NodePorts; len(got) != 2 {
		t.Errorf("got %v", got)
	}
	if got := w.last().Node.Bound; len(got) != 2 {
		t.Errorf("bound: got %v", got)
	}
	node := w.last().Node
	w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("fe80::1/128")})
	if w.last().Node != node {
		t.Error("a pod's link-local address is a new Node")
	}
	for range dataplane.Diff(first.Ports, w.last().Ports) {
		t.Error("an address touched a Service")
	}
}

func TestNodeEligibility(t *testing.T) { // KUBE-PROXY §2.3
	w := synced(t)
	eligible := func(want bool) {
		t.Helper()
		if w.Status().NodeEligible != want {
			t.Errorf("eligible: %v", !want)
		}
	}
	eligible(true)
	w.Apply(putNode(&facts.Node{Eligible: false}))
	eligible(false)
	w.Apply(putNode(hereNode()))
	eligible(true)
	w.Apply(facts.Change{Nodes: facts.Delta[facts.Node]{Remove: []facts.Name{{Name: "here"}}}})
	eligible(false)
	w.Apply(putNode(hereNode()))
	eligible(true)
}

// TestProgramming: when the changes of a Snapshot happened, for the metric.
func TestProgramming(t *testing.T) {
	type told struct {
		revision uint64
		triggers []time.Time
	}
	var got []told
	w := watch(t, func(o *Options) {
		o.Programming = func(r uint64, t []time.Time) { got = append(got, told{r, t}) }
	})
	w.SetAddresses(nil)
	at := time.Unix(1000, 0)
	triggered := func(last ...int) *facts.Slice { s := set("a-1", "a", last...); s.Trigger = at; return s }
	w.Apply(known([]*facts.Service{svc("a", 1)}, []*facts.Slice{triggered(1)}, hereNode()))
	w.Apply(putSlices(triggered(1, 2)))
	w.Apply(putSlices(triggered(2, 1))) // changes nothing
	w.Apply(put(svc("b", 2)))
	want := []told{{1, nil}, {2, []time.Time{at}}, {3, nil}}
	if !slices.EqualFunc(got, want, func(a, b told) bool { return a.revision == b.revision && slices.Equal(a.triggers, b.triggers) }) {
		t.Errorf("got %v, wanted %v", got, want)
	}
}

type sourceFunc func(context.Context, func(facts.Change)) error

func (f sourceFunc) Run(ctx context.Context, apply func(facts.Change)) error { return f(ctx, apply) }

func TestRun(t *testing.T) {
	follows := sourceFunc(func(ctx context.Context, apply func(facts.Change)) error {
		apply(known(nil, nil, hereNode()))
		<-ctx.Done()
		return ctx.Err()
	})
	breaks := sourceFunc(func(context.Context, func(facts.Change)) error { return errBroken })
	t.Run("ends with its context", func(t *testing.T) {
		w := watch(t, func(o *Options) {
			o.Addresses = func(ctx context.Context, report func([]netip.Prefix)) error {
				report(nil)
				<-ctx.Done()
				return ctx.Err()
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx, follows) }()
		within(t, "a Snapshot", func() bool { return w.published() == 1 })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("tells of a source that cannot work", func(t *testing.T) {
		if err := watch(t, nil).Run(t.Context(), breaks); !errors.Is(err, errBroken) {
			t.Error(err)
		}
	})
	t.Run("tells of addresses that cannot be had", func(t *testing.T) {
		w := watch(t, func(o *Options) { o.Addresses = func(context.Context, func([]netip.Prefix)) error { return errBroken } })
		if err := w.Run(t.Context(), follows); !errors.Is(err, errBroken) {
			t.Error(err)
		}
	})
}

// TestWhatIsAskedOften: health checks and metrics ask this again and again, and
// must not pay for what is contested.
func TestWhatIsAskedOften(t *testing.T) {
	w := watch(t, nil)
	w.SetAddresses(nil)
	w.Apply(known(flood(1000), nil, hereNode()))
	for what, ask := range map[string]func(){
		"NodeEligible": func() { w.NodeEligible() }, "Stats": func() { w.Stats() }, "Waiting": func() { w.Waiting() },
	} {
		if n := testing.AllocsPerRun(10, ask); n > 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	if s := w.Status(); s.NodeEligible != w.NodeEligible() || s.Stats != w.Stats() || s.Waiting != w.Waiting() {
		t.Errorf("%+v", s)
	}
}

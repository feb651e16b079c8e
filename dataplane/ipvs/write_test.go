package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// noting stands for a table and routes, and notes into the log of a fake what comes.
type noting struct{ *fake }

func (n noting) Write(c *nft.Change, _ func(string) string) error {
	for e := range c.Put {
		n.log = append(n.log, "put into "+e.Set)
	}
	for _, e := range c.Remove {
		n.log = append(n.log, "take from "+e.Set)
	}
	slices.Sort(n.log[len(n.log)-len(c.Put)-len(c.Remove):])
	return nil
}

func (n noting) add(a netip.Addr) error {
	n.log = append(n.log, fmt.Sprint("route to ", a))
	return nil
}
func (n noting) remove(a netip.Addr) error {
	n.log = append(n.log, fmt.Sprint("no route to ", a))
	return nil
}

// familyOf returns a family of a backend that has a fake in the kernel's place. Nothing
// is held yet.
func familyOf(f *fake) *familyBackend {
	out := &familyBackend{backend: backendOf(f), table: newTable(dataplane.IPv4, &counts{}), refs: map[nft.Element]int{}}
	out.node, out.ids = node{family: dataplane.IPv4, scheduler: "rr"}, affinity.NewIDs()
	return out
}

// changeFor returns the diff of a change.
func (f *familyBackend) changeFor(prev, want *dataplane.Snapshot) *diff {
	d := newDiff(f.table, &f.node, f.ids.Of, f.refs)
	d.change(&f.node, f.ids, prev.Ports, want.Ports)
	return d
}

// TestOrder: what takes connections is there before what leads them to it, and goes
// behind that. A repair is in the same order.
func TestOrder(t *testing.T) {
	none, one := snapshotOf(), snapshotOf(port("web", frontend(dataplane.ClusterIP, "10.96.0.1:80", pool("10.244.1.5:80"), dataplane.SNATNone)))
	up := []string{"put into plain", "put into vips", "make 10.96.0.1:80", "add 10.244.1.5:80 of 10.96.0.1:80", "route to 10.96.0.1"}
	down := []string{"no route to 10.96.0.1", "remove 10.96.0.1:80", "take from plain", "take from vips"}
	f := newFake()
	family := familyOf(f)
	for _, step := range []struct {
		what string
		diff func() *diff
		want []string
	}{
		{"a Service comes", func() *diff { return family.changeFor(none, one) }, up},
		{"it goes", func() *diff { return family.changeFor(one, none) }, down},
		{"a repair brings it back", func() *diff {
			d := newDiff(family.table, &family.node, family.ids.Of, map[nft.Element]int{})
			d.wantAll(one.Ports)
			return d
		}, up},
	} {
		f.log = nil
		if _, err := family.write(t.Context(), target{noting{f}, noting{f}}, step.diff(), family.localnet); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.log, step.want) {
			t.Errorf("%s: %q, want %q", step.what, f.log, step.want)
		}
	}
}

// TestBeforeTheRoute: a client of a Service address is dropped, and tries again, as
// long as the address has no route, and refused at other ports once it has.
func TestBeforeTheRoute(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		if out, err := exec.Command("ip", "-6", "route", "add", "default", "dev", "out").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for f, vip := range map[dataplane.Family]string{dataplane.IPv4: "10.96.0.1", dataplane.IPv6: "fd96::1"} {
			a := netip.MustParseAddr(vip)
			r := rulesFor(&node{family: f, mark: 1 << 14, ranges: []netip.Prefix{netip.PrefixFrom(a, 16).Masked()}})
			change := nft.NewChange()
			change.Remake, change.Chains = true, r.constants()
			change.Put[nft.Element{Family: f, Set: setVIPs, Key: nft.AddrBytes(a)}] = ""
			if err := newTable(f, &counts{}).Write(&change, nil); err != nil {
				t.Fatal(err)
			}
			dial := func() error {
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 81).String(), 500*time.Millisecond)
				if err == nil {
					_ = conn.Close()
				}
				return err
			}
			if err := dial(); !os.IsTimeout(err) {
				t.Errorf("%s: without a route: %v; want no answer", f, err)
			}
			n.routes.findSource(f)
			if err := n.routes.add(a); err != nil {
				t.Fatal(err)
			}
			if err := dial(); !errors.Is(err, syscall.ECONNREFUSED) {
				out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
				t.Errorf("%s: with a route: %v; want a refusal; the rules are\n%s", f, err, out)
			}
		}
	})
}

// kept stands for a table and routes, and keeps what it is told.
type kept struct {
	elements map[nft.Element]string
	routes   map[netip.Addr]bool
}

func newKept() *kept { return &kept{map[nft.Element]string{}, map[netip.Addr]bool{}} }

func (k *kept) Write(c *nft.Change, _ func(string) string) error {
	for _, e := range c.Remove {
		delete(k.elements, e)
	}
	maps.Copy(k.elements, c.Put)
	return nil
}

func (k *kept) add(a netip.Addr) error    { k.routes[a] = true; return nil }
func (k *kept) remove(a netip.Addr) error { delete(k.routes, a); return nil }

// serving returns the services of a fake with the endpoints that get new connections.
func (f *fake) serving() map[serviceKey]string {
	out := map[serviceKey]string{}
	for key, s := range f.services {
		out[key] = s.scheduler
		for _, a := range slices.SortedFunc(maps.Keys(s.weights), netip.AddrPort.Compare) {
			if s.weights[a] > 0 {
				out[key] += " " + a.String()
			}
		}
	}
	return out
}

// TestRefusedService: what the kernel refuses of one IPVS service is its ServicePort's
// alone, which is then as it was before or gone, and all others are as wanted. What any
// service would be refused is the family's.
func TestRefusedService(t *testing.T) {
	const at, elsewhere, good, bad = "10.96.0.1:80", "10.96.0.2:80", "10.244.1.5:80", "239.1.1.1:80"
	web := func(at string, endpoints ...string) *dataplane.ServicePort {
		return port("web", frontend(dataplane.ClusterIP, at, pool(endpoints...), dataplane.SNATNone))
	}
	scheduled := func(p *dataplane.ServicePort, s string) *dataplane.ServicePort { p.Scheduler = s; return p }
	two := func(a, b string, endpoints ...string) *dataplane.ServicePort {
		return port("web", frontend(dataplane.ClusterIP, a, pool(endpoints...), dataplane.SNATNone), frontend(dataplane.ExternalIP, b, pool(endpoints...), dataplane.SNATAll))
	}
	first := web(at, good)
	refuses := func(what, endpoint string, err error) func(string, serviceKey, netip.AddrPort) error {
		return func(do string, key serviceKey, e netip.AddrPort) error {
			if strings.HasPrefix(do, what) && (endpoint == "" || e.String() == endpoint) && strings.HasPrefix(key.addr.String(), "10.96.0.") {
				return err
			}
			return nil
		}
	}
	backTo := func(scheduler string, first func(string, serviceKey, netip.AddrPort) error) func(string, serviceKey, netip.AddrPort) error {
		return func(do string, key serviceKey, e netip.AddrPort) error {
			return cmp.Or(first(do, key, e), refuses("change to "+scheduler, "", unix.ENOENT)(do, key, e))
		}
	}
	unicastOnly := refuses("add", bad, unix.EINVAL)
	for _, tc := range []struct {
		name        string
		prev, want  *dataplane.ServicePort // nil: none
		refuse      func(do string, key serviceKey, endpoint netip.AddrPort) error
		left        *dataplane.ServicePort // of it afterwards; nil: nothing
		named, over bool                   // the ServicePort is named; all of the family fails
	}{
		{"a new Service with a multicast endpoint", nil, web(at, good, bad), unicastOnly, nil, true, false},
		{"one that gets such an endpoint", first, web(at, "10.244.1.6:80", bad), unicastOnly, first, true, false},
		{"and loses an address", two(at, elsewhere, good), web(at, bad), unicastOnly, web(at, good), true, false},
		{"and gets one", first, two(at, elsewhere, bad), unicastOnly, first, true, false},
		{"and moves", first, web(elsewhere, bad), unicastOnly, nil, true, false},
		{"two services of one ServicePort are refused", nil, two(at, elsewhere, bad), unicastOnly, nil, true, false},
		{"the service itself is refused", nil, first, refuses("make", "", unix.EINVAL), nil, true, false},
		{"its scheduler is gone", first, scheduled(web(at, good), "mh"), refuses("change", "", unix.ENOENT), first, true, false},
		{"an endpoint cannot be told to drain", web(at, good, "10.244.1.6:80"), web(at, good), refuses("weigh 0", "", unix.EINVAL), web(at, good, "10.244.1.6:80"), true, false},
		{"an endpoint cannot be cut", scheduled(web(at, good, "10.244.1.6:80"), "dh"), scheduled(web(at, good), "dh"), refuses("cut", "", unix.EINVAL), scheduled(web(at, good, "10.244.1.6:80"), "dh"), true, false},
		{"what it was is refused, too", first, scheduled(web(at, bad), "wlc"), backTo("rr", unicastOnly), nil, true, false},
		{"nothing of it is taken", nil, web(at, good), refuses("add", "", unix.EINVAL), nil, true, false},
		{"the machine permits nothing", first, web(at, "10.244.1.6:80"), refuses("add", "", unix.EPERM), nil, false, true},
		{"the connection is lost", first, web(at, "10.244.1.6:80"), refuses("add", "", errors.New("socket got closed")), nil, false, true},
		{"a service that goes is kept", first, nil, refuses("remove", "", unix.EINVAL), nil, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := func(n string) *dataplane.ServicePort {
				return port("other", frontend(dataplane.ClusterIP, "10.99.0.9:80", pool("10.244.9."+n+":80"), dataplane.SNATNone))
			}
			with := func(o, p *dataplane.ServicePort) *dataplane.Snapshot {
				if p == nil {
					return snapshotOf(o)
				}
				return snapshotOf(o, p)
			}
			f, have := newFake(), newKept()
			family := familyOf(f)
			to := target{have, have}
			prev, want := with(other("1"), tc.prev), with(other("2"), tc.want)
			if _, err := family.write(t.Context(), to, family.changeFor(snapshotOf(), prev), family.localnet); err != nil {
				t.Fatal(err)
			}
			f.refuse = tc.refuse
			refused, err := family.write(t.Context(), to, family.changeFor(prev, want), family.localnet)
			var failed []dataplane.PortError
			held := want
			if err == nil {
				held, failed, err = family.fallBack(t.Context(), to, &family.node, prev, want, refused)
			}
			if (err != nil) != tc.over || (len(failed) == 1 && failed[0].ID.Service == "web") != tc.named {
				t.Fatalf("it named %v and returned %v", failed, err)
			}
			if tc.over {
				return
			}
			fresh, expected := newFake(), newKept()
			clean := familyOf(fresh)
			if _, err := clean.write(t.Context(), target{expected, expected}, clean.changeFor(snapshotOf(), with(other("2"), tc.left)), clean.localnet); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(f.serving(), fresh.serving()) {
				t.Errorf("services %v, want %v", f.serving(), fresh.serving())
			}
			if !maps.Equal(have.elements, expected.elements) || !maps.Equal(have.routes, expected.routes) {
				t.Errorf("elements %v, want %v; routes %v, want %v", have.elements, expected.elements, have.routes, expected.routes)
			}
			if got := held.Ports.Len(); got != with(other("2"), tc.left).Ports.Len() {
				t.Errorf("the kernel is said to hold %d ServicePorts", got)
			}
			f.refuse = nil // it is tried again
			if _, err := family.write(t.Context(), to, family.changeFor(held, want), family.localnet); err != nil {
				t.Fatal(err)
			}
			again := newFake()
			clean = familyOf(again)
			if _, err := clean.write(t.Context(), target{newKept(), newKept()}, clean.changeFor(snapshotOf(), want), clean.localnet); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(f.serving(), again.serving()) {
				t.Errorf("tried again: services %v, want %v", f.serving(), again.serving())
			}
		})
	}
}

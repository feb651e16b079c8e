package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

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
		if err := family.write(t.Context(), target{noting{f}, noting{f}}, step.diff(), family.localnet); err != nil {
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

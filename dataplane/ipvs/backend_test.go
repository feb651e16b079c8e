package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/backendtest"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

func bothFamilies(n byte) *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	for i := range n {
		v4 := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, i + 1}), 80).String()
		v6 := netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x96, 15: i + 1}), 80).String()
		ports = append(ports, port("four-"+v4, frontend(dataplane.ClusterIP, v4, pool("10.244.1.5:80"), dataplane.SNATNone)),
			port("six-"+v6, frontend(dataplane.ClusterIP, v6, pool("[fd00::5]:80"), dataplane.SNATNone)))
	}
	return snapshotOf(ports...)
}

// TestFamilyAlone: where the kernel does not take one family's rules, the other
// family is programmed, and this one is once the kernel does.
func TestFamilyAlone(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		first, want := bothFamilies(2), bothFamilies(3)
		backendtest.MustSync(t, b, nil, first)
		well, broken := b.families[1].table, spec(dataplane.IPv6)
		broken.Name = strings.Repeat("x", 300)
		b.families[1].table, b.families[1].held = nft.NewTable(dataplane.IPv6, broken, &b.counts.table), nil
		var failed *dataplane.FamilyError
		if err := b.Sync(t.Context(), first, want); !errors.As(err, &failed) || len(failed.Failed) != 1 || !failed.Has(dataplane.IPv6) {
			t.Fatalf("Sync returned %v; want an error of IPv6 alone", err)
		}
		b.Hold([]dataplane.Family{dataplane.IPv6})
		inForce := *want
		inForce.Ports = dataplane.Replace(want.Ports, first.Ports, func(id dataplane.PortID) bool { return id.Family == dataplane.IPv6 })
		backendtest.MustSync(t, b, nil, &inForce)
		_ = b.families[1].table.Close()
		b.families[1].table = well
		b.Hold(nil)
		backendtest.MustSync(t, b, &inForce, want)
		backendtest.MustHold(t, b, want)
	})
}

// TestObserveAlongside: the kernel is read while Syncs change it (for -race), and
// what is read after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	inNetns(t, func() {
		backendtest.ObserveAlongside(t, opened(t, Options{}), bothFamilies(100), bothFamilies(50))
	})
}

// TestDisturbed: it is noticed when somebody else changes our table or takes our
// services away. What we change ourselves is not, and neither are other services.
func TestDisturbed(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		want := bothFamilies(3)
		backendtest.MustSync(t, b, nil, want)
		noticed := func(within time.Duration) bool {
			select {
			case <-b.Disturbed():
				return true
			case <-time.After(within):
				return false
			}
		}
		for noticed(3 * lookEvery) { // what the first Sync did counts as another's
		}
		backendtest.MustSync(t, b, want, bothFamilies(2))
		backendtest.MustSync(t, b, bothFamilies(2), want)
		other := virtual(serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.99:80")}, "rr")
		other.Timeout = 0
		if err := b.reader.ipvs.NewService(other); err != nil {
			t.Fatal(err)
		}
		if noticed(3 * lookEvery) {
			t.Error("our own changes, or another program's service, count as a disturbance")
		}
		for what, disturb := range map[string]func() error{
			"one service is removed": func() error {
				return b.reader.ipvs.DelService(virtual(serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.1:80")}, ""))
			},
			"all services are removed": b.reader.ipvs.(*ipvs.Handle).Flush,
			"a table is flushed":       exec.Command("nft", "flush", "table", "ip6", tableName).Run,
		} {
			if err := disturb(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !noticed(time.Minute) {
				t.Errorf("%s, and nobody notices", what)
			}
			backendtest.MustSync(t, b, nil, want)
			for noticed(3 * lookEvery) {
			}
		}
		backendtest.MustHold(t, b, want)
	})
}

// TestExcludedPlaceIsTakenMeanwhile: where another program took a place in
// --ipvs-exclude-cidrs, a repair leaves it alone and refuses the Service.
func TestExcludedPlaceIsTakenMeanwhile(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}})
		const at = "10.96.0.1:80"
		want := snapshotOf(port("web", frontend(dataplane.ClusterIP, at, pool("10.244.1.5:80"), dataplane.SNATNone)))
		backendtest.MustSync(t, b, nil, want)
		key := serviceKey{dataplane.TCP, netip.MustParseAddrPort(at)}
		other := virtual(key, "wlc")
		other.Timeout = 0
		if err := errors.Join(b.reader.ipvs.DelService(virtual(key, "")), b.reader.ipvs.NewService(other)); err != nil {
			t.Fatal(err)
		}
		var partial *dataplane.PartialError
		if err := b.Sync(t.Context(), nil, want); !errors.As(err, &partial) {
			t.Errorf("Sync returned %v; want the Service to be refused", err)
		}
		if have, err := b.reader.ipvs.GetService(virtual(key, "")); err != nil || have.Timeout == ownTimeout || have.SchedName != "wlc" {
			t.Errorf("the other program's service is %+v, %v", have, err)
		}
	})
}

// TestLocalnetWithoutItsGuard: if somebody removes the rule that says who switched
// route_localnet on, we still know, and cleanup switches it off.
func TestLocalnetWithoutItsGuard(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		want := snapshotOf(port("web", frontend(dataplane.NodePort, "0.0.0.0:30080", pool("10.244.1.5:80"), dataplane.SNATNone)))
		want.Node.NodePorts = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		backendtest.MustSync(t, b, nil, want)
		if out, err := exec.Command("nft", "flush", "table", "ip", tableName).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		backendtest.MustSync(t, b, nil, want)
		if err := cleanup(b.log); err != nil {
			t.Fatal(err)
		}
		if on, err := localnet.IsOn(); on || err != nil {
			t.Errorf("after cleanup route_localnet is on: %t, %v", on, err)
		}
	})
}

// TestDevicesComeAndGo: pods that start and end keep no Sync and no Observe from
// their work, though dumps of devices are interrupted.
func TestDevicesComeAndGo(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		want := bothFamilies(5)
		pod := func(name string) *netlink.Dummy { return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}} }
		for i := range 100 {
			if err := netlink.LinkAdd(pod(fmt.Sprintf("pod%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		// The goroutine has a socket of this network namespace.
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		ctx, stop := context.WithCancel(t.Context())
		var coming sync.WaitGroup
		defer coming.Wait()
		defer stop()
		coming.Go(func() {
			for ctx.Err() == nil {
				_ = h.LinkAdd(pod("new"))
				_ = h.LinkDel(pod("new"))
				time.Sleep(20 * time.Millisecond)
			}
		})
		for range 20 {
			backendtest.MustSync(t, b, nil, want)
			if _, err := b.Observe(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

package addrs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// link adds a device with addresses.
func link(t *testing.T, name string, addresses ...string) netlink.Link {
	t.Helper()
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatalf("adding %s: %v", name, err)
	}
	for _, a := range addresses {
		address(t, l, a)
	}
	return l
}

func address(t *testing.T, l netlink.Link, s string) {
	t.Helper()
	a, err := netlink.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatalf("adding %s: %v", s, err)
	}
}

// up starts a device, without a link-local address.
func up(t *testing.T, l netlink.Link) {
	t.Helper()
	if err := netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// localRoute makes a local route.
func localRoute(t *testing.T, l netlink.Link, to string, protocol netlink.RouteProtocol) *netlink.Route {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: protocol, Scope: netlink.SCOPE_HOST}
}

func addRoute(t *testing.T, r *netlink.Route) {
	t.Helper()
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatalf("adding the route to %s: %v", r.Dst, err)
	}
}

// follower runs Follow in the namespace that it was made in.
type follower struct {
	*testing.T
	reports chan []netip.Prefix
	done    chan error
	cancel  context.CancelFunc
}

func startFollowing(t *testing.T) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{t, make(chan []netip.Prefix, 100), make(chan error, 1), cancel}
	current, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = current.Close() })
	go func() {
		runtime.LockOSThread()
		err := netns.Set(current)
		if err == nil {
			err = Follow(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)), func(p []netip.Prefix) { f.reports <- p })
		}
		f.done <- err
	}()
	return f
}

func (f *follower) await(want string) {
	f.Helper()
	var got []netip.Prefix
	deadline := time.After(time.Minute)
	for {
		select {
		case got = <-f.reports:
			if strings.Trim(fmt.Sprint(got), "[]") == want {
				return
			}
		case <-deadline:
			f.Fatalf("never reported: %s; last: %v", want, got)
		}
	}
}

// silent fails if there is a report soon.
func (f *follower) silent(why string) {
	f.Helper()
	select {
	case got := <-f.reports:
		f.Errorf("%s: reported %v", why, got)
	case <-time.After(6 * settle):
	}
}

func TestFollow(t *testing.T) {
	kerneltest.OwnNetns(t)
	link(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	link(t, ipvsDevice, "10.96.0.1/32") // frontends, not addresses of the node
	f := startFollowing(t)

	f.await("192.0.2.1/32 2001:db8::1/128")
	l := link(t, "eth1", "198.51.100.1/24")
	f.await("192.0.2.1/32 198.51.100.1/32 2001:db8::1/128")
	address(t, l, "198.51.100.2/24")
	f.await("192.0.2.1/32 198.51.100.1/32 198.51.100.2/32 2001:db8::1/128")
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	f.await("192.0.2.1/32 2001:db8::1/128")

	// Many changes at once come as few reports.
	l = link(t, "eth2")
	for i := range 100 {
		address(t, l, fmt.Sprintf("203.0.113.%d/32", i+1))
	}
	deadline, n := time.After(time.Minute), 0
	for last := 0; last != 102; {
		select {
		case got := <-f.reports:
			last = len(got)
			n++
		case <-deadline:
			t.Fatal("100 addresses were not reported")
		}
	}
	if n > 50 {
		t.Errorf("%d reports of 100 changes", n)
	}
	f.cancel()
	select {
	case err := <-f.done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("Follow does not end with its context")
	}
}

// TestFollowLocalRoutes: a cloud's agent routes the addresses of load balancers
// like this, and a node may take a whole prefix.
func TestFollowLocalRoutes(t *testing.T) {
	kerneltest.OwnNetns(t)
	const base = "192.0.2.1/32 2001:db8::1/128"
	eth0 := link(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	proxy := link(t, ipvsDevice)
	up(t, eth0)
	up(t, proxy)
	f := startFollowing(t)
	f.await(base)

	const cloud = 66
	for _, r := range []struct {
		to, want string
	}{
		{"10.77.0.50/32", "10.77.0.50/32 192.0.2.1/32 2001:db8::1/128"},
		{"10.77.0.0/24", "10.77.0.0/24 192.0.2.1/32 2001:db8::1/128"},
		{"2001:db8:77::50/128", base + " 2001:db8:77::50/128"},
		{"2001:db8:77::/64", base + " 2001:db8:77::/64"},
	} {
		route := localRoute(t, eth0, r.to, cloud)
		addRoute(t, route)
		f.await(r.want)
		if err := netlink.RouteDel(route); err != nil {
			t.Fatal(err)
		}
		f.await(base)
	}

	// The routes of backends, and routes that are not local.
	for _, to := range []string{"10.96.0.1/32", "fd00:96::1/128"} {
		addRoute(t, localRoute(t, eth0, to, dataplane.RouteProtocol))
		addRoute(t, localRoute(t, proxy, strings.Replace(to, "1/", "2/", 1), unix.RTPROT_KERNEL))
		unicast := localRoute(t, eth0, strings.Replace(to, "1/", "3/", 1), cloud)
		unicast.Type, unicast.Table, unicast.Scope = unix.RTN_UNICAST, unix.RT_TABLE_MAIN, netlink.SCOPE_LINK
		addRoute(t, unicast)
	}
	f.silent("routes that make nothing the node's")

	// The kernel removes the routes of a device that had no address without a message.
	eth1 := link(t, "eth1")
	up(t, eth1)
	addRoute(t, localRoute(t, eth1, "10.77.0.51/32", cloud))
	f.await("10.77.0.51/32 " + base)
	if err := netlink.LinkDel(eth1); err != nil {
		t.Fatal(err)
	}
	f.await(base)
}

// TestFollowOverflow loses messages: a list makes up for them. A device that goes
// takes hundreds of addresses with it at once.
func TestFollowOverflow(t *testing.T) {
	kerneltest.OwnNetns(t)
	link(t, "eth0", "192.0.2.1/24")
	l := link(t, "eth1")
	const many = 500
	for i := range many {
		address(t, l, fmt.Sprintf("10.0.%d.%d/32", i/250, i%250+1))
	}
	f, err := follow.Start(changes())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.SetBuffer(1); err != nil {
		t.Fatal(err)
	}
	reader, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := false
	err = each(ctx, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), f, func() error {
		now, err := list(reader)
		switch {
		case err != nil:
			return err
		case !before && len(now) == many+1:
			before = true
			return netlink.LinkDel(l)
		case before && len(now) == 1:
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the last addresses were not read: %v", err)
	}
}

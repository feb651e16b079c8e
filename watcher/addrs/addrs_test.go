package addrs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inNamespace runs the rest of the test in a network namespace of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine, and the namespace with it
	ns, err := netns.New()
	if err != nil {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatalf("making a network namespace: %v", err)
		}
		t.Skipf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
}

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

func TestFollow(t *testing.T) {
	inNamespace(t)
	link(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	link(t, ipvsDevice, "10.96.0.1/32") // frontends, not addresses of the node

	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan []netip.Addr, 100)
	done := make(chan error, 1)
	started := make(chan struct{})
	current, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = current.Close() }()
	go func() {
		runtime.LockOSThread()
		err := netns.Set(current)
		close(started)
		if err == nil {
			err = Follow(ctx, slog.New(slog.DiscardHandler), func(a []netip.Addr) { reports <- a })
		}
		done <- err
	}()
	<-started
	await := func(want string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case got := <-reports:
				if strings.Trim(fmt.Sprint(got), "[]") == want {
					return
				}
			case <-deadline:
				t.Fatalf("never reported: %s", want)
			}
		}
	}
	await("192.0.2.1 2001:db8::1")
	l := link(t, "eth1", "198.51.100.1/24")
	await("192.0.2.1 198.51.100.1 2001:db8::1")
	address(t, l, "198.51.100.2/24")
	await("192.0.2.1 198.51.100.1 198.51.100.2 2001:db8::1")
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	await("192.0.2.1 2001:db8::1")

	// Many changes at once come as few reports.
	l = link(t, "eth2")
	for i := range 100 {
		address(t, l, fmt.Sprintf("203.0.113.%d/32", i+1))
	}
	deadline, n := time.After(10*time.Second), 0
	for last := 0; last != 102; {
		select {
		case got := <-reports:
			last = len(got)
			n++
		case <-deadline:
			t.Fatal("100 addresses were not reported")
		}
	}
	if n > 50 {
		t.Errorf("%d reports of 100 changes", n)
	}
	cancel()
	select {
	case err := <-done:
		if err == nil || ctx.Err() == nil {
			t.Errorf("Follow ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Follow does not end with its context")
	}
}

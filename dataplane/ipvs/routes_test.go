package ipvs

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestRoutes: the node connects to a Service address from its own, whatever
// came and went before; nobody else's local route is touched.
func TestRoutes(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		before := localRoutes(t)
		for range 3 {
			for _, tc := range []struct {
				family   dataplane.Family
				vip, own string
			}{{dataplane.IPv4, "10.96.0.1", "198.51.100.1"}, {dataplane.IPv6, "fd96::1", "2001:db8:1::1"}} {
				vip := netip.MustParseAddr(tc.vip)
				n.routes.findSource(tc.family)
				if got := n.routes.sources[tc.family]; got.IsValid() && got.String() != tc.own {
					t.Fatalf("the node is said to send from %s; its address is %s", got, tc.own)
				}
				for range 2 { // the second time it is there
					if err := n.routes.add(vip); err != nil {
						t.Fatal(err)
					}
				}
				have, err := n.routes.read(tc.family)
				if err != nil || len(have) != 1 || !have[vip] {
					t.Fatalf("read back: %v, %v", have, err)
				}
				to, err := n.routes.netlink.RouteGet(vip.AsSlice())
				if err != nil || len(to) != 1 || to[0].Src.String() != tc.own {
					t.Errorf("to %s the node sends by %v, %v; wanted from %s", vip, to, err, tc.own)
				}
			}
			if err := cleanupRoutes(n.routes); err != nil {
				t.Fatal(err)
			}
			if after := localRoutes(t); after != before {
				t.Fatalf("local routes were\n%s\nand are\n%s", before, after)
			}
		}
	})
}

// TestRouteAfterItsSourceIsGone: the address that the node sent from may go
// while nothing else changes.
func TestRouteAfterItsSourceIsGone(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		for f, gone := range map[dataplane.Family]string{dataplane.IPv4: "198.51.100.77", dataplane.IPv6: "2001:db8:1::77"} {
			n.routes.findSource(f)
			n.routes.sources[f] = netip.MustParseAddr(gone)
			vip := exampleOf(f)
			if err := n.routes.add(vip); err != nil {
				t.Error(err)
			}
			if have, err := n.routes.read(f); err != nil || !have[vip] {
				t.Errorf("read back: %v, %v", have, err)
			}
		}
	})
}

// TestTaken: an address that a cloud's agent routes to the node is the node's, and
// what else is reached there is not ours to reject.
func TestTaken(t *testing.T) {
	inNetns(t, func() {
		n := newNode(t)
		out, err := exec.Command("sh", "-c", "ip link add kube-ipvs0 type veth peer name far; ip link set kube-ipvs0 up; ip addr add 10.96.0.2/32 dev kube-ipvs0; "+
			"ip route add local 203.0.113.7/32 dev out proto 66; ip route add local 10.77.0.0/24 dev out; ip -6 route add local 2001:db8:7::7/128 dev out proto 66").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, vip := range []string{"10.96.0.1", "fd96::1"} {
			if err := n.routes.add(netip.MustParseAddr(vip)); err != nil {
				t.Fatal(err)
			}
		}
		taken, err := n.routes.taken()
		if err != nil {
			t.Fatal(err)
		}
		for a, want := range map[string]bool{
			"198.51.100.1": true, "203.0.113.7": true, "2001:db8:7::7": true, "10.96.0.1": false, "fd96::1": false, "10.96.0.2": false, "10.77.0.0": false,
		} {
			if taken[netip.MustParseAddr(a)] != want {
				t.Errorf("%s: taken is %v", a, !want)
			}
		}
	})
}

// localRoutes are the local routes, but for those of link-local addresses, which
// devices get in their own time.
func localRoutes(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "ip route show table local; ip -6 route show table local type local | grep -v fe80").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(out), "linkdown ", "")
}

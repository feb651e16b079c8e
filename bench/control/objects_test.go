package control

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func endpoints(n int) []Endpoint {
	all := make([]Endpoint, n)
	for i := range all {
		all[i] = Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.40.2.11"), netip.MustParseAddr("fd40::1")}, Node: "node-b"}
	}
	return all
}

func ports(n int) []Port { return make([]Port, n) }

func TestSlices(t *testing.T) {
	for _, c := range []struct {
		name   string
		s      Service
		slices int
	}{
		{"one endpoint", Service{Ports: ports(1), Endpoints: endpoints(1)}, 1},
		{"no endpoint", Service{Ports: ports(1)}, 1},
		{"both families", Service{Ports: ports(1), Endpoints: endpoints(1), DualStack: true}, 2},
		{"1,000 endpoints", Service{Ports: ports(1), Endpoints: endpoints(1000)}, 10},
		{"400 ports", Service{Ports: ports(400), Endpoints: endpoints(10)}, 4},
	} {
		got := endpointSlices(c.s)
		if len(got) != c.slices {
			t.Errorf("%s: %d slices; want %d", c.name, len(got), c.slices)
		}
		names, n := map[string]bool{}, 0
		for _, o := range got {
			names[o.Name] = true
			n += len(o.Endpoints)
		}
		if len(names) != len(got) {
			t.Errorf("%s: names %v", c.name, names)
		}
	}
}

func TestFillAddresses(t *testing.T) {
	service := netip.MustParsePrefix(Services4)
	seen := map[netip.Addr]bool{}
	for i := range 60_000 {
		a := fillAddress(i)
		if seen[a] || !service.Contains(a) {
			t.Fatalf("address %d is %s, which is used or not in %s", i, a, service)
		}
		seen[a] = true
	}
}

func TestStored(t *testing.T) {
	ops, err := stored(&Placed{
		Service:    Service{Name: "web", Ports: []Port{{corev1.ProtocolTCP, 80, 8080}}, Endpoints: endpoints(10)},
		ClusterIPs: []netip.Addr{fillAddress(7)},
	})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, op := range ops {
		keys = append(keys, string(op.RequestPut.Key))
	}
	want := []string{"/registry/ipaddresses/" + fillAddress(7).String(), "/registry/endpointslices/bench/web-0", "/registry/services/specs/bench/web"}
	if len(keys) != len(want) {
		t.Fatalf("%q; want %q", keys, want)
	}
	for i := range want {
		if keys[i] != want[i] {
			t.Errorf("%q; want %q", keys, want)
		}
	}
}

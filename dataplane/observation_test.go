package dataplane

import (
	"net/netip"
	"slices"
	"testing"
)

func TestObservationDifferences(t *testing.T) {
	addr := netip.MustParseAddrPort
	a, b := Endpoint{Addr: addr("10.244.1.5:8080")}, Endpoint{Addr: addr("10.244.2.5:8080")}
	wanted := Expect(&Snapshot{Ports: MakePorts(&ServicePort{
		ID: PortID{Namespace: "shop", Service: "web", Protocol: TCP, Family: IPv4},
		Frontends: []Frontend{
			{Kind: ClusterIP, Addr: addr("10.96.0.1:80"), Pool: &Pool{Endpoints: []Endpoint{a, b}}},
			{
				Kind: NodePort, Addr: addr("0.0.0.0:30080"),
				Pool:   &Pool{IfEmpty: Drop},
				Inside: &Pool{Endpoints: []Endpoint{a, b}},
			},
		},
	})})
	both := []netip.AddrPort{a.Addr, b.Addr}
	for _, c := range []struct {
		name   string
		kernel []ObservedFrontend
		want   []string
	}{
		{"as wanted, in another order", []ObservedFrontend{
			{TCP, addr("10.96.0.1:80"), ObservedPool{Endpoints: []netip.AddrPort{b.Addr, a.Addr}}, ObservedPool{Endpoints: both}},
			{TCP, addr("0.0.0.0:30080"), ObservedPool{IfEmpty: Drop}, ObservedPool{Endpoints: both}},
		}, nil},
		{"an endpoint is missing, and drop became reject", []ObservedFrontend{
			{TCP, addr("10.96.0.1:80"), ObservedPool{Endpoints: both[:1]}, ObservedPool{Endpoints: both}},
			{TCP, addr("0.0.0.0:30080"), ObservedPool{}, ObservedPool{Endpoints: both}},
		}, []string{
			"TCP 0.0.0.0:30080 for clients from outside: the kernel has reject, wanted is drop",
			"TCP 10.96.0.1:80 for clients from outside: the kernel has 10.244.1.5:8080, wanted is 10.244.1.5:8080 10.244.2.5:8080",
		}},
		{"one frontend too few, one too many", []ObservedFrontend{
			{TCP, addr("10.96.0.1:80"), ObservedPool{Endpoints: both}, ObservedPool{Endpoints: both}},
			{UDP, addr("10.96.0.1:53"), ObservedPool{Endpoints: both}, ObservedPool{Endpoints: both}},
		}, []string{
			"TCP 0.0.0.0:30080 is wanted and not in the kernel",
			"UDP 10.96.0.1:53 is in the kernel and not wanted",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kernel := &Observation{Frontends: c.kernel}
			kernel.Sort()
			if got := kernel.Differences(wanted); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// TestNodePortOnALocalRoute: a cloud's agent makes the address of a load balancer
// the node's by a local route. NodePorts answer there as long as the route exists.
func TestNodePortOnALocalRoute(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		s := newSite(t, backend, []any{serviceCIDR()})
		s.writeWeb(s.node.Pods[0])
		at := netip.MustParseAddrPort("10.77.0.50:30080")
		if err := s.lab.Announce(netip.PrefixFrom(at.Addr(), 32), s.node); err != nil {
			t.Fatal(err)
		}
		request := netlab.Request{Protocol: netlab.TCP, To: at, Timeout: netlab.Patient(time.Second)}
		answers := func(want bool) {
			t.Helper()
			for deadline := time.Now().Add(netlab.Patient(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
				a, err := s.lab.Clients[0].Ask(request)
				if (err == nil && a.Outcome == netlab.Answered) == want {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("the NodePort: %s, %v; answered should be %v", a, err, want)
				}
			}
		}
		answers(false)
		if out, err := s.shell("ip route add local 10.77.0.50/32 dev lo proto 66"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		answers(true)
		if out, err := s.shell("ip route del local 10.77.0.50/32 dev lo proto 66"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		answers(false)
	})
}

package main

import (
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// TestCleanupDrains: with --drain a connection that only the old backend can
// serve goes on while cleanup waits, a new one is not served, and when the first
// has ended all is removed.
func TestCleanupDrains(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		if backend != "ipvs" {
			t.Skip("the kernel's NAT goes on with its connections under another proxy's rules")
		}
		s := newSite(t, backend, []any{serviceCIDR()})
		s.writeWeb(s.node.Pods[0])
		client, request := s.lab.Clients[0], netlab.Request{Protocol: netlab.TCP, To: s.webNodePort()}
		held, err := client.Hold(request, 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		s.stop()
		cleanup := s.command("cleanup", "--drain="+drainTime.String())
		if err := s.node.Start(cleanup); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cleanup.Wait() }()
		for tries := 0; ; tries++ { // until it serves nothing new
			if a, err := client.Ask(request); err != nil || a.Outcome != netlab.Answered {
				break
			}
			if tries == 100 {
				t.Fatal("new connections are still served")
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(3 * time.Second) // longer than it is between two looks at the table
		select {
		case err := <-ended:
			t.Fatalf("it has not waited for the connection: %v", err)
		default:
		}
		if sum, err := held.Stop(); err != nil || sum.Failed > 0 || sum.Requests < 20 {
			t.Errorf("the connection meanwhile: %+v, %v; want no failure", sum, err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("cleanup: %v", err)
			}
		case <-time.After(drainTime):
			t.Fatal("it does not end, though the connection has")
		}
		if left := s.left(backend); left != "" {
			t.Errorf("it has left %s", left)
		}
	})
}

package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// A Service that loses one of its endpoints: connected UDP clients of that one
// learn it, clients of the other notice nothing.
func TestConnectedUDPClientsLearnThatTheirEndpointIsGone(t *testing.T) {
	b := openBackend(t, testOptions(t))
	serves := func(endpoint string) *dataplane.Snapshot {
		p := portOf("dns", dataplane.UDP, frontendAt(dataplane.ClusterIP, "10.96.0.9:53", poolOf(endpoint)))
		p.Serving = []netip.AddrPort{netip.MustParseAddrPort(endpoint)}
		other := portOf("other", dataplane.UDP, frontendAt(dataplane.ClusterIP, "10.96.0.10:53", poolOf("127.0.2.2:8080")))
		other.Serving = []netip.AddrPort{netip.MustParseAddrPort("127.0.2.2:8080")}
		return snapshot(p, other)
	}
	udpEcho(t, "127.0.2.1:8080")
	udpEcho(t, "127.0.2.2:8080")
	dial := func(to string) net.Conn {
		t.Helper()
		c, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	before, after := serves("127.0.2.1:8080"), serves("127.0.2.2:8080")
	mustSync(t, b, nil, before)
	loses, keeps := dial("10.96.0.9:53"), dial("10.96.0.10:53")
	mustSync(t, b, before, after)
	joins := dial("10.96.0.9:53")

	if err := loses.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := loses.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the client of the removed endpoint reads %v; want ECONNABORTED", err)
	}
	for name, c := range map[string]net.Conn{"the client of another Service": keeps, "a new client": joins} {
		if _, err := c.Write([]byte("?")); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second)) // a Read that fails says so
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

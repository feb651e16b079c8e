package load

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

var nobody = netip.MustParseAddrPort("127.77.0.2:9")

// serving starts the servers on loopback, each test's on another address.
func serving(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	a := netip.MustParseAddr(addr)
	if err := new(service).Serve(ServeArgs{ID: 'x', Addrs: []netip.Addr{a}}, nil); err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(a, EchoPort)
}

func TestSessions(t *testing.T) {
	to := serving(t, "127.77.0.1")
	bulk := netip.AddrPortFrom(to.Addr(), BulkPort)
	for _, c := range []struct {
		kind    Kind
		targets []netip.AddrPort
		fails   string // part of the error; "": it works
	}{
		{Requests, []netip.AddrPort{to}, ""},
		{Connections, []netip.AddrPort{to}, ""},
		{UDPRequests, []netip.AddrPort{to}, ""},
		{UDPBatches, []netip.AddrPort{to}, ""},
		{UDPFlows, []netip.AddrPort{to}, ""},
		{Throughput, []netip.AddrPort{bulk}, ""},
		{Connects, []netip.AddrPort{to, bulk, to}, ""},

		{"juggle", []netip.AddrPort{to}, `no sessions "juggle"`},
		{Requests, nil, "no target"},
		{Requests, []netip.AddrPort{nobody}, "connecting to 127.77.0.2:9: connection refused"},
		{Connections, []netip.AddrPort{nobody}, "connecting to 127.77.0.2:9: connection refused"},
		{UDPFlows, []netip.AddrPort{nobody}, "connection refused"},
		{Connects, []netip.AddrPort{to, nobody}, "connecting to 127.77.0.2:9: connection refused"},
	} {
		s, times, err := work(Job{Kind: c.kind, Targets: c.targets}, 2)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s to %v: %v; want %q in it", c.kind, c.targets, err, c.fails)
			}
		case err != nil:
			t.Errorf("%s: %v", c.kind, err)
		case s.Done == 0 || s.Took == 0 || times != int64(s.Done):
			t.Errorf("%s: %+v, of which %d are timed", c.kind, s, times)
		}
	}
}

// work opens a session and lets it work for a few slices.
func work(j Job, slices int) (sum Slice, times int64, err error) {
	var all sessions
	n, err := all.add(j)
	if err != nil {
		return sum, 0, err
	}
	for range slices {
		s, err := all.slice(n, 10*time.Millisecond)
		if err != nil {
			return sum, 0, err
		}
		sum.Done, sum.Took = sum.Done+s.Done, sum.Took+s.Took
	}
	got, err := all.remove(n)
	if err != nil {
		return sum, 0, err
	}
	_, err = all.slice(n, 0)
	if err == nil {
		return sum, 0, errors.New("a session that is closed works")
	}
	return sum, hdrhistogram.Import(got).TotalCount(), nil
}

func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const busy = 20 * time.Millisecond
	for begin := time.Now(); time.Since(begin) < busy; {
		continue
	}
	after, err := cpuTime(os.Getpid())
	if err != nil || after-before < busy/4 {
		t.Errorf("%s of CPU time after %s of work, %v", after-before, busy, err)
	}
}

func TestProbe(t *testing.T) {
	to := serving(t, "127.77.0.4")
	before := Now()
	at, err := probe(Probe{Targets: []netip.AddrPort{to, to}, Want: 'x', Timeout: time.Second})
	if err != nil || at < before || at > Now() {
		t.Errorf("answered at %s, %v", at, err)
	}
	if _, err := probe(Probe{Targets: []netip.AddrPort{to}, Want: 'y', Timeout: 10 * time.Millisecond}); err == nil {
		t.Error("another server's answer counted")
	}
}

// TestTurnover: a server of blocks answers with the block, and a turnover ends when
// just new ones answer.
func TestTurnover(t *testing.T) {
	if err := new(service).ServeBlocks(struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), EchoPort) }
	for _, c := range []struct {
		name     string
		turnover Turnover
		fails    bool
	}{
		{"the new one answers", Turnover{Target: at("127.78.5.1"), New: 5, Old: []byte{4}, Timeout: time.Minute}, false},
		{"the old one answers", Turnover{Target: at("127.78.5.1"), New: 6, Old: []byte{5}, Timeout: 20 * time.Millisecond}, true},
	} {
		got, err := turnover(c.turnover)
		if c.fails != (err != nil) || !c.fails && (got.New == 0 || got.Old != 0) || c.fails && got.Old == 0 {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

package load

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serving starts the servers on loopback, each test's on another address.
func serving(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	a := netip.MustParseAddr(addr)
	if err := new(service).Serve(ServeArgs{ID: 'x', Addrs: []netip.Addr{a}}, nil); err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(a, EchoPort)
}

func TestJobs(t *testing.T) {
	to := serving(t, "127.77.0.1")
	for _, kind := range []Kind{RequestResponse, OpenLoop, ConnectRate, Dial, UDPResponse, UDPFlood} {
		t.Run(string(kind), func(t *testing.T) {
			targets := []netip.AddrPort{to}
			if kind == Dial {
				targets = append(targets, to, to)
			}
			o, err := run(Job{Kind: kind, Targets: targets, Rate: 500, Workers: 2, Duration: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if o.Requests == 0 || o.Failed > 0 {
				t.Errorf("%d requests, %d failed: %s", o.Requests, o.Failed, o.Error)
			}
			if timed := o.Histogram().TotalCount(); kind != UDPFlood && timed != int64(o.Requests) {
				t.Errorf("%d requests are timed of %d", timed, o.Requests)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	nobody := netip.MustParseAddrPort("127.77.0.2:9")
	for _, c := range []struct {
		job  Job
		want string
	}{
		{Job{Kind: RequestResponse}, "no target"},
		{Job{Kind: "juggle", Targets: []netip.AddrPort{nobody}}, `no jobs "juggle"`},
		{Job{Kind: RequestResponse, Targets: []netip.AddrPort{nobody}}, "connecting to 127.77.0.2:9: connection refused"},
		{Job{Kind: OpenLoop, Targets: []netip.AddrPort{nobody}}, "connecting to 127.77.0.2:9: connection refused"},
	} {
		if _, err := run(c.job); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", c.job.Kind, err, c.want)
		}
	}
	o, err := run(Job{Kind: Dial, Targets: []netip.AddrPort{nobody, nobody}})
	if err != nil || o.Failed != 2 || !strings.Contains(o.Error, "refused") {
		t.Errorf("%+v, %v; want 2 failures", o, err)
	}
}

// TestPauseCountsForAll has a server that stops for a while: an open loop has to
// show the pause in all the requests that were due meanwhile.
func TestPauseCountsForAll(t *testing.T) {
	at := netip.MustParseAddrPort("127.77.0.3:8080")
	fd, err := bound(unix.SOCK_STREAM, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	const pause = 100 * time.Millisecond
	go func() {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		buf := make([]byte, messageSize)
		for i := 0; readAll(c, buf) == nil && writeAll(c, buf) == nil; i++ {
			if i == 20 {
				time.Sleep(pause)
			}
		}
	}()
	o, err := run(Job{Kind: OpenLoop, Targets: []netip.AddrPort{at}, Rate: 1000, Duration: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	h := o.Histogram()
	slow := h.TotalCount() * int64(100-percentileOf(h.ValueAtPercentile, pause/4)) / 100
	if slow < 50 {
		t.Errorf("%d of %d requests took more than %s; a pause of %s holds up 75", slow, h.TotalCount(), pause/4, pause)
	}
}

// percentileOf is the first percentile that reaches a time.
func percentileOf(at func(float64) int64, d time.Duration) int {
	for p := range 100 {
		if at(float64(p)) >= int64(d) {
			return p
		}
	}
	return 100
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

package packet

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestSilence: how long a connection may be silent before it is forgotten.
func TestSilence(t *testing.T) {
	for _, tc := range []struct {
		name             string
		protocol         uint8
		answered         bool
		ends, answerEnds uint8
		want             time.Duration
		retired          time.Duration // where nothing new begins
	}{
		{"TCP without an answer", unix.IPPROTO_TCP, false, 0, 0, 60 * time.Second, 60 * time.Second},
		{"TCP that stands", unix.IPPROTO_TCP, true, 0, 0, 24 * time.Hour, 24 * time.Hour},
		{"TCP that the client ended", unix.IPPROTO_TCP, true, connFIN, 0, time.Hour, time.Hour},
		{"TCP that the server ended", unix.IPPROTO_TCP, true, 0, connFIN, time.Hour, time.Hour},
		{"TCP that both ended", unix.IPPROTO_TCP, true, connFIN, connFIN, time.Minute, 10 * time.Second},
		{"TCP that was reset", unix.IPPROTO_TCP, true, 0, connReset, 10 * time.Second, 10 * time.Second},
		{"UDP without an answer", unix.IPPROTO_UDP, false, 0, 0, 30 * time.Second, 30 * time.Second},
		{"UDP with answers", unix.IPPROTO_UDP, true, 0, 0, 2 * time.Minute, 30 * time.Second},
		{"SCTP that stands", unix.IPPROTO_SCTP, true, 0, 0, 210 * time.Second, 210 * time.Second},
		{"SCTP that was aborted", unix.IPPROTO_SCTP, true, connReset, 0, 10 * time.Second, 10 * time.Second},
	} {
		if got := silence(tc.protocol, tc.answered, tc.ends, tc.answerEnds); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if got := retiredSilence(tc.protocol, tc.answered, tc.ends, tc.answerEnds); got != tc.retired {
			t.Errorf("%s, where nothing new begins: %s, want %s", tc.name, got, tc.retired)
		}
	}
}

// TestCollect: a silent connection goes with all its entries, a fresh one
// stays; an entry without a connection goes at the second pass.
func TestCollect(t *testing.T) {
	c := programs(t)
	run(t, c.Programs[progIn], frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_UDP))
	run(t, c.Programs[progIn], frame(client6, frontend6, clientPort, frontendPort, unix.IPPROTO_TCP))
	lost := tuple{Protocol: unix.IPPROTO_UDP, Stage: stageOut, Sport: [2]byte{1, 2}}
	if err := c.Maps[mapConnections].Put(lost, conn{}); err != nil {
		t.Fatal(err)
	}
	age := newCollector(Config{Collection: c, Log: slog.New(slog.DiscardHandler)})
	for _, step := range []struct {
		after   time.Duration
		entries int
		what    string
	}{
		{0, 5, "two connections of two entries each, and a lost one that is only suspected"},
		{0, 4, "the lost one is gone"},
		{45 * time.Second, 2, "UDP without an answer is gone, TCP is not"},
		{90 * time.Second, 0, "TCP without an answer is gone"},
	} {
		age.now = func() time.Duration { return monotonic() + step.after }
		if _, err := age.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(entries(c)); n != step.entries {
			t.Errorf("%d entries, want %d: %s", n, step.entries, step.what)
		}
	}
	t.Run("where nothing new begins", func(t *testing.T) { retire(t, c) }) // to load the programs takes Linux 6.1 long
}

// retire: where nothing new begins, a connection whose both sides have ended goes
// soon, one that is under way stays.
func retire(t *testing.T, c *ebpf.Collection) {
	run(t, c.Programs[progIn], frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_TCP))
	for key, value := range entries(c) {
		value.Ends, value.Seen = connFIN, uint64(monotonic()-15*time.Second)
		if err := c.Maps[mapConnections].Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	run(t, c.Programs[progIn], frame(client6, frontend6, clientPort, frontendPort, unix.IPPROTO_TCP))
	var retired atomic.Bool
	age := newCollector(Config{Collection: c, Log: slog.New(slog.DiscardHandler), Retired: &retired})
	for _, want := range []int{4, 2} {
		if _, err := age.collect(t.Context()); err != nil || len(entries(c)) != want {
			t.Errorf("%v, %d entries, want %d; retired: %t", err, len(entries(c)), want, retired.Load())
		}
		retired.Store(true)
	}
}

// entries are all of the connection table.
func entries(c *ebpf.Collection) map[tuple]conn {
	all := map[tuple]conn{}
	var key tuple
	var value conn
	for it := c.Maps[mapConnections].Iterate(); it.Next(&key, &value); {
		all[key] = value
	}
	return all
}

package packet

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullTable: where the connection table is full, connections that stand go
// on, new ones are dropped, counted and warned of, and there is room again when
// one has ended.
func TestFullTable(t *testing.T) {
	const room = 8 // entries: four connections
	for _, w := range ways(false) {
		t.Run(w.name, func(t *testing.T) {
			c := programsOf(t, room)
			from := func(n int) netip.AddrPort { return netip.AddrPortFrom(w.client.Addr(), uint16(clientPort+n)) }
			packet := func(src, dst netip.AddrPort, flags byte) []byte {
				return frameOf(ip(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp(src, dst, flags, nil, nil)))
			}
			open := func(n int) bool {
				verdict, out := run(t, c.Programs[progIn], packet(from(n), w.frontend, flagSYN))
				return verdict == passed && bytes.Equal(out, packet(from(n), w.endpoint, flagSYN))
			}
			var log bytes.Buffer
			watch := newCollector(Config{Collection: c, Log: slog.New(slog.NewTextHandler(&log, nil)), ConnectionsFlag: "--the-flag"})
			for n := range room / 2 {
				if !open(n) {
					t.Fatalf("connection %d of %d does not fit", n, room/2)
				}
			}
			watch.warnIfFull()
			if log.Len() > 0 {
				t.Errorf("warned of a table that has refused nothing: %s", &log)
			}
			for n := room / 2; n < room/2+3; n++ {
				if verdict, _ := run(t, c.Programs[progIn], packet(from(n), w.frontend, flagSYN)); verdict != shot {
					t.Errorf("connection %d beyond the table's size: verdict %d", n, int32(verdict))
				}
			}
			for n := range room / 2 {
				if _, out := run(t, c.Programs[progIn], packet(from(n), w.frontend, flagACK)); !bytes.Equal(out, packet(from(n), w.endpoint, flagACK)) {
					t.Errorf("connection %d does not go on", n)
				}
				if _, out := run(t, c.Programs[progOut], packet(w.endpoint, from(n), flagACK)); !bytes.Equal(out, packet(w.frontend, from(n), flagACK)) {
					t.Errorf("answers of connection %d do not go on", n)
				}
			}
			watch.warnIfFull()
			if text := log.String(); !strings.Contains(text, "connections=3") || !strings.Contains(text, "--the-flag") {
				t.Errorf("the warning is %q; it should count 3 connections and name the flag", text)
			}
			run(t, c.Programs[progOut], packet(w.endpoint, from(0), flagRST))
			now := monotonic()
			watch.now = func() time.Duration { return now + tcpReset + time.Second }
			if removed, err := watch.collect(t.Context()); removed != 1 || err != nil {
				t.Errorf("%d connections collected, %v; one was reset", removed, err)
			}
			if !open(room) {
				t.Error("there is no room for a new connection where one has ended")
			}
		})
	}
}

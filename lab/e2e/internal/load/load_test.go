package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestReportCounts(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	later := at.Add(time.Second)
	cases := map[string]struct {
		outcomes []outcome
		want     Report
	}{
		"all answered": {
			outcomes: []outcome{{at, time.Millisecond, "a", nil}, {at, 3 * time.Millisecond, "b", nil}, {at, 2 * time.Millisecond, "a", nil}},
			want:     Report{Requests: 3, Slowest: 3 * time.Millisecond, Answers: map[string]int{"a": 2, "b": 1}},
		},
		"a slow answer is no failure": {
			outcomes: []outcome{{at, time.Second, "a", nil}},
			want:     Report{Requests: 1, Slow: 1, Slowest: time.Second, Answers: map[string]int{"a": 1}},
		},
		"the first error is the one whose request began first": {
			outcomes: []outcome{{later, 1, "", errors.New("second")}, {at, 2, "", errors.New("first")}},
			want:     Report{Requests: 2, Failed: 2, Slowest: 2, Answers: map[string]int{}, FirstError: "first", FirstErrorAt: at},
		},
		"a late failure is not slow as well": {
			outcomes: []outcome{{at, timeout, "", errors.New("timeout")}},
			want:     Report{Requests: 1, Failed: 1, Slowest: timeout, Answers: map[string]int{}, FirstError: "timeout", FirstErrorAt: at},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Report{Answers: map[string]int{}}
			for _, o := range c.outcomes {
				got.add(o)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestRun(t *testing.T) {
	var conns atomic.Int32
	var fail atomic.Bool
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fail.Load() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprint(w, "pod-1")
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	open := netip.MustParseAddrPort(server.Listener.Addr().String())
	refused := closedPort(t)

	cases := map[string]struct {
		target   Target
		fail     bool
		requests int
		failed   int
		conns    int32
		says     string
	}{
		"a connection per request":       {target: Target{Addr: open, Rate: 500, Count: 20}, requests: 20, conns: 20},
		"one connection held":            {target: Target{Addr: open, Rate: 500, Count: 20, Held: true}, requests: 20, conns: 1},
		"nobody listens":                 {target: Target{Addr: refused, Rate: 500, Count: 5}, requests: 5, failed: 5, says: "connection refused"},
		"a broken connection stays so":   {target: Target{Addr: refused, Rate: 500, Count: 5, Held: true}, requests: 1, failed: 1, says: "connection refused"},
		"the server answers an error":    {target: Target{Addr: open, Rate: 500, Count: 3}, fail: true, requests: 3, failed: 3, conns: 3, says: "503"},
		"a rate that nobody could bound": {target: Target{Addr: open, Rate: MaxRate + 1, Count: 3}, requests: 1, failed: 1, says: "rate"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			conns.Store(0)
			fail.Store(c.fail)
			r := Run(t.Context(), c.target)
			if r.Requests != c.requests || r.Failed != c.failed {
				t.Errorf("%d requests and %d failed, want %d and %d", r.Requests, r.Failed, c.requests, c.failed)
			}
			if got := conns.Load(); got != c.conns {
				t.Errorf("%d connections, want %d", got, c.conns)
			}
			if got := r.Answers["pod-1"]; got != c.requests-c.failed {
				t.Errorf("%d answers of pod-1, want %d", got, c.requests-c.failed)
			}
			if !strings.Contains(r.FirstError, c.says) {
				t.Errorf("error %q does not say %q", r.FirstError, c.says)
			}
		})
	}
}

// The end of a stream is no failure of the requests that are under way.
func TestRunStopsWithoutFailure(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(50 * time.Millisecond)
		_, _ = fmt.Fprint(w, "pod-1")
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r := Run(ctx, Target{Addr: netip.MustParseAddrPort(server.Listener.Addr().String()), Rate: 100})
	if r.Requests == 0 || r.Failed != 0 {
		t.Errorf("%d requests, %d failed: %s", r.Requests, r.Failed, r.FirstError)
	}
}

func TestServeStopsWhenItsInputEnds(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "pod-1") }))
	defer server.Close()
	in, control := io.Pipe()
	go func() {
		targets := []Target{{Name: "endless", Addr: netip.MustParseAddrPort(server.Listener.Addr().String()), Rate: 100}}
		_ = json.NewEncoder(control).Encode(targets)
		time.Sleep(100 * time.Millisecond)
		_ = control.Close()
	}()
	var out bytes.Buffer
	if err := Serve(t.Context(), in, &out); err != nil {
		t.Fatal(err)
	}
	var reports []Report
	if err := json.Unmarshal(out.Bytes(), &reports); err != nil || len(reports) != 1 {
		t.Fatalf("reports %s: %v", out.Bytes(), err)
	}
	if r := reports[0]; r.Target.Name != "endless" || r.Requests == 0 || r.Failed != 0 {
		t.Errorf("report %+v", r)
	}
}

func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String())
}

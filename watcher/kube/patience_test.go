package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
)

// TestASickServerIsLeft: which answers, three in a row, have another API server
// asked, while a watch goes on over the same connection.
func TestASickServerIsLeft(t *testing.T) {
	for _, c := range []struct {
		status int
		leaves bool
	}{
		{http.StatusInternalServerError, true}, {http.StatusServiceUnavailable, true}, {http.StatusUnauthorized, true},
		{http.StatusTooManyRequests, true}, {http.StatusGatewayTimeout, true},
		{http.StatusForbidden, false}, {http.StatusNotFound, false}, {http.StatusGone, false}, {http.StatusConflict, false}, {http.StatusUnprocessableEntity, false},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			var asked [2]atomic.Int64
			server := func(i, status int) string {
				h := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/watch" {
						w.(http.Flusher).Flush()
						<-r.Context().Done()
						return
					}
					asked[i].Add(1)
					w.WriteHeader(status)
				}))
				h.EnableHTTP2 = true
				h.StartTLS()
				t.Cleanup(h.Close)
				return h.Listener.Addr().String()
			}
			several := &servers{addrs: []string{server(0, c.status), server(1, http.StatusOK)}, log: slog.New(slog.DiscardHandler)}
			transport := httptest.NewTLSServer(nil).Client().Transport.(*http.Transport).Clone()
			transport.TLSClientConfig.InsecureSkipVerify = true
			transport.ForceAttemptHTTP2 = true
			transport.DialContext = several.dial
			client := &http.Client{Transport: &patience{next: transport, servers: several, longest: time.Minute}}
			watch, err := client.Get("https://api/watch")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = watch.Body.Close() }()
			for range mostBad + 5 { // one may meet a connection that is being closed
				if resp, err := client.Get("https://api/list"); err == nil {
					_ = resp.Body.Close()
				}
			}
			if left := asked[1].Load() > 0; left != c.leaves || asked[0].Load() < mostBad {
				t.Errorf("asked %d and %d times", asked[0].Load(), asked[1].Load())
			}
		})
	}
}

// TestASilentServerIsLeft: one that accepts a request and gives no answer.
func TestASilentServerIsLeft(t *testing.T) {
	silence := make(chan struct{})
	dumb := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-silence:
		case <-r.Context().Done():
		}
	}))
	defer dumb.Close()
	defer close(silence)
	talks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "talks") }))
	defer talks.Close()
	several := &servers{addrs: []string{dumb.Listener.Addr().String(), talks.Listener.Addr().String()}, log: slog.New(slog.DiscardHandler)}
	client := &http.Client{Transport: &patience{next: &http.Transport{DialContext: several.dial}, servers: several, longest: 100 * time.Millisecond}}
	if _, err := client.Get("http://api/"); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Fatalf("error %v", err)
	}
	resp, err := client.Get("http://api/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if text, _ := io.ReadAll(resp.Body); string(text) != "talks" {
		t.Errorf("got %q", text)
	}
}

// TestOneServerIsNotLeft: there is none to go over to, and its watches go on.
func TestOneServerIsNotLeft(t *testing.T) {
	s := &servers{addrs: []string{"127.0.0.1:1"}, log: slog.New(slog.DiscardHandler)}
	for range 10 {
		s.answered(sick, s.turn())
	}
	if s.turn() != 0 {
		t.Error("left")
	}
}

// TestWhatFailedWithAServerIsNotTheNextOnes: requests that were under way when a
// server was left say nothing of the one after it.
func TestWhatFailedWithAServerIsNotTheNextOnes(t *testing.T) {
	s := &servers{addrs: []string{"a", "b", "c"}, log: slog.New(slog.DiscardHandler)}
	turn := s.turn()
	for range 10 {
		s.answered(sick, turn)
	}
	if s.first() != 1 {
		t.Errorf("at %s", s.addrs[s.first()])
	}
}

// TestQuiet: what client-go calls an error is for debugging, and is not written
// otherwise.
func TestQuiet(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 1} {
		var out bytes.Buffer
		log := logr.FromSlogHandler(quiet{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})})
		log.Error(context.Canceled, "failed to list")
		if got := strings.Count(out.String(), "level=DEBUG"); got != want || strings.Contains(out.String(), "ERROR") {
			t.Errorf("at %s: %q", level, out.String())
		}
	}
}

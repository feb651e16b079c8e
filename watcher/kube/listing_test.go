package kube

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/watcher/facts"
)

// TestListingOfABusyServer: the pauses after refused requests are time in which
// nothing came, not time in which we decoded.
func TestListingOfABusyServer(t *testing.T) {
	begin := time.Now()
	const busy = 500 * time.Millisecond
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case time.Since(begin) < busy:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Query().Get("watch") != "":
			w.WriteHeader(http.StatusUnprocessableEntity)
		case strings.HasSuffix(r.URL.Path, "/services"):
			_, _ = io.WriteString(w, `{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(h.Close)
	s, err := New(Options{Master: h.URL, NodeName: "n", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Run(ctx, func(facts.Change) { cancel() }); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	l := s.listings["services"]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first.Ended.IsZero() || l.first.Waited < busy/2 {
		t.Errorf("%+v; want the wait for a server that is busy for %s", l.first, busy)
	}
}

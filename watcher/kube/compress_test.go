package kube_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

// TestCompression sees which answers the API server may compress: lists, which it
// compresses once, and watches only where that is asked for.
func TestCompression(t *testing.T) {
	for _, c := range []struct {
		name        string
		compress    bool
		watch, list string
	}{
		{"plain watches", false, "identity", "gzip"},
		{"compressed watches", true, "gzip", "gzip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			asked := map[string]string{} // list or watch, to what may be done to the answer
			s := newAPIServer()
			s.old = true
			s.shop()
			h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				kind := "list"
				if r.URL.Query().Get("watch") != "" {
					kind = "watch"
				}
				mu.Lock()
				asked[kind] = r.Header.Get("Accept-Encoding")
				mu.Unlock()
				s.ServeHTTP(w, r)
			}))
			source, err := kube.New(kube.Options{Master: h.URL, NodeName: "node-a", Log: slog.New(slog.DiscardHandler), CompressWatches: c.compress})
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = source.Run(t.Context(), func(facts.Change) {}) }() // until the test ends
			t.Cleanup(h.CloseClientConnections)
			within(t, "a list and a watch", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return asked["watch"] == c.watch && asked["list"] == c.list
			})
		})
	}
}

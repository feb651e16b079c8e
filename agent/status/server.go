package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

// retryListen is how long to wait before another try at an address in use.
const retryListen = 5 * time.Second

// HealthMux serves the health paths (kube-proxy's port 10256).
func HealthMux(h *Health, m *Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz", counted(m.healthz, h.Healthz()))
	mux.Handle("/livez", counted(m.livez, h.Livez()))
	mux.Handle("/readyz", h.Readyz())
	return mux
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = fmt.Fprint(w, s) // the client may be gone
	}
}

// Server is one address that answers HTTP.
type Server struct {
	Name     string // for messages: "health", "metrics"
	Addr     string // host:port; "": nowhere
	Handler  http.Handler
	HardFail bool // an address that cannot be had ends Run with an error, instead of another try
	Log      *slog.Logger

	listener net.Listener // of Listen
}

// Listen takes the address before Run, where one that cannot be had must end
// the agent before it does anything.
func (s *Server) Listen(ctx context.Context) error {
	if s.Addr == "" {
		return nil
	}
	var err error
	if s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", s.Addr); err != nil {
		return fmt.Errorf("the %s server cannot listen on %s: %w", s.Name, s.Addr, err)
	}
	return nil
}

// Run serves until ctx ends. Without HardFail it returns nil then, and only then.
func (s *Server) Run(ctx context.Context) error {
	if s.Addr == "" {
		return nil
	}
	for {
		err := s.serve(ctx)
		if err == nil || s.HardFail {
			return err
		}
		s.Log.Error("cannot serve an address; trying again", "server", s.Name, "address", s.Addr, "in", retryListen, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryListen):
		}
	}
}

// serve answers until ctx ends, which is no error.
func (s *Server) serve(ctx context.Context) error {
	if s.listener == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	l := s.listener
	s.listener = nil // Serve closes it
	srv := &http.Server{Handler: s.Handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the %s server on %s: %w", s.Name, s.Addr, err)
	}
	return nil
}

// codeLabel is kube-proxy's label for an HTTP status: its number.
func codeLabel(code int) string { return strconv.Itoa(code) }

package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// DefaultSocket is where an agent answers, if it is not told otherwise.
const DefaultSocket = "/run/switchyard/switchyard.sock"

// Paths of the answers.
const (
	pathStatus   = "/v1/status"
	pathServices = "/v1/services"
	pathExplain  = "/v1/explain"
	pathVerify   = "/v1/verify"
)

// retryListen is how long to wait before another try at a socket in use.
const retryListen = 5 * time.Second

// Server answers on a Unix socket that only root reaches.
type Server struct {
	Socket   string
	HardFail bool // a socket that cannot be had ends Run with an error, instead of another try
	Log      *slog.Logger
	Inspector
}

// Run answers until ctx ends. Without HardFail it returns nil then, and only then.
func (s *Server) Run(ctx context.Context) error {
	said := ""
	for {
		err := s.serve(ctx)
		if err == nil || s.HardFail {
			return err
		}
		if said != err.Error() { // once, as it may stay so
			said = err.Error()
			s.Log.Error("cannot serve switchyard status and the like; trying again", "socket", s.Socket, "in", retryListen, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryListen):
		}
	}
}

func (s *Server) serve(ctx context.Context) error {
	l, release, err := listen(s.Socket)
	if err != nil {
		return err
	}
	defer release()
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving socket %s: %w", s.Socket, err)
	}
	return nil
}

// listen makes the socket. A lock beside it tells whether another agent has it;
// the kernel takes the lock from an agent that was killed, whose socket stays.
func listen(socket string) (_ net.Listener, release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the directory of socket %s: %w", socket, err)
	}
	lock, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the lock of socket %s: %w", socket, err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("another agent serves socket %s: stop it, or give this one another --socket", socket)
		}
		return nil, nil, fmt.Errorf("locking socket %s: %w", socket, err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("removing the socket of an agent that was killed: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("making socket %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = l.Close()
		return nil, nil, fmt.Errorf("closing socket %s to others: %w", socket, err)
	}
	return l, func() { _ = lock.Close() }, nil
}

// handler serves the answers. They are indented, so that the command line
// prints them as they come.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Status(), nil) })
	mux.HandleFunc("GET "+pathServices, func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.Services(r.Context(), r.FormValue("namespace"), r.FormValue("name"))
		reply(w, answer, err)
	})
	mux.HandleFunc("GET "+pathExplain, func(w http.ResponseWriter, r *http.Request) {
		q, err := parseQuestion(r.URL.Query())
		if err != nil {
			reply(w, nil, err)
			return
		}
		answer, err := s.Explain(r.Context(), q)
		reply(w, answer, err)
	})
	mux.HandleFunc("POST "+pathVerify, func(w http.ResponseWriter, r *http.Request) {
		repair, _ := strconv.ParseBool(r.FormValue("repair"))
		answer, err := s.Verify(r.Context(), repair)
		reply(w, answer, err)
	})
	return mux
}

// errWrong marks a question that makes no sense.
var errWrong = errors.New("wrong argument")

// parseQuestion reads a Question as it travels.
func parseQuestion(form url.Values) (Question, error) {
	q := Question{NoKernel: form.Get("kernel") == "false"}
	to, protocol, from := form.Get("to"), form.Get("protocol"), form.Get("from")
	var err error
	if q.To, err = netip.ParseAddrPort(to); err != nil || q.To.Port() == 0 {
		return q, fmt.Errorf("%w: %q is no address and port, as in 10.96.0.1:443 or [fd00::1]:443", errWrong, to)
	}
	q.To = netip.AddrPortFrom(q.To.Addr().Unmap(), q.To.Port())
	for _, known := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		if strings.EqualFold(protocol, known.String()) {
			q.Protocol = known
		}
	}
	if q.Protocol == 0 {
		return q, fmt.Errorf("%w: protocol %q; it can be TCP, UDP or SCTP", errWrong, protocol)
	}
	if from == "" {
		return q, nil
	}
	if q.From, err = netip.ParseAddr(from); err != nil {
		return q, fmt.Errorf("%w: --from is %q; it must be an IP address", errWrong, from)
	}
	if q.From = q.From.Unmap(); dataplane.FamilyOf(q.From) != dataplane.FamilyOf(q.To.Addr()) {
		return q, fmt.Errorf("%w: --from is %s, which is not of the family of %s", errWrong, q.From, q.To.Addr())
	}
	return q, nil
}

// fault is the answer to a question that has none.
type fault struct {
	Error string `json:"error"`
}

func reply(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	code := http.StatusOK
	switch {
	case err == nil:
	case errors.Is(err, errWrong):
		code = http.StatusBadRequest
	case errors.As(err, new(notFound)):
		code = http.StatusNotFound
	default:
		code = http.StatusServiceUnavailable
	}
	if err != nil {
		answer = fault{err.Error()}
	}
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	_ = e.Encode(answer) // the client may be gone
}

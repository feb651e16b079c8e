package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// dialTime is how long one API server has to accept a connection.
	dialTime = 3 * time.Second
	// shortLived is a connection that another server is tried after: whoever
	// accepts and gives nothing is not well.
	shortLived = 10 * time.Second
	// keepAlive finds out in a quarter of a minute that a machine is gone.
	keepAlive = 5 * time.Second
	probes    = 3
	// mostBad is how many answers in a row of a server that is not well are enough.
	mostBad = 3
	// answerTime is how long a server has to begin its answer: longer than API
	// servers give a request.
	answerTime = 75 * time.Second
)

// servers connects to one of several API servers of a cluster, whatever address
// is asked for. It stays with the one that answers, and takes the next when
// that one does not.
type servers struct {
	addrs []string
	log   *slog.Logger

	mu    sync.Mutex
	at    int                      // the one to try first
	conns map[*connection]struct{} // that are open
	bad   int                      // answers in a row that a server which is well does not give
	moves int                      // how often at changed
}

// newServers begins at another server on each node, so that they share the load.
func newServers(addrs []string, node string, log *slog.Logger) *servers {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return &servers{addrs: addrs, log: log, at: int(h.Sum32() % uint32(len(addrs)))}
}

// dial has the shape of net.Dialer.DialContext.
func (s *servers) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	alive := net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: probes}
	dialer := net.Dialer{Timeout: dialTime, KeepAliveConfig: alive}
	first := s.first()
	var errs []error
	for i := range s.addrs {
		at := (first + i) % len(s.addrs)
		conn, err := dialer.DialContext(ctx, network, s.addrs[at])
		if err == nil {
			s.use(at)
			return s.connected(conn, at), nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("no API server accepts a connection: %w", errors.Join(errs...))
}

func (s *servers) connected(conn net.Conn, at int) *connection {
	c := &connection{Conn: conn, servers: s, at: at, since: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[*connection]struct{}{}
	}
	s.conns[c] = struct{}{}
	return c
}

// answered notes an answer. A server that gives mostBad bad ones in a row, or
// none at all, is left: all its connections are closed, because a connection on
// which a watch goes on would have the next request, too.
// turn is what turn returned when the request began: what fails because the
// connections were closed says nothing of the next server.
func (s *servers) answered(a answer, turn int) {
	s.mu.Lock()
	switch {
	case turn != s.moves:
	case a == well:
		s.bad = 0
	case a == sick:
		s.bad++
	case a == silent:
		s.bad = mostBad
	}
	if s.bad < mostBad || len(s.addrs) < 2 {
		s.mu.Unlock()
		return
	}
	left := s.at
	s.goTo((left + 1) % len(s.addrs))
	s.log.Warn("an API server does not work; going over to another", "from", s.addrs[left], "to", s.addrs[s.at])
	var open []*connection
	for c := range s.conns {
		if c.at == left {
			open = append(open, c)
		}
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // whoever waits for it is told
	}
}

// turn returns a number that changes when a server is left.
func (s *servers) turn() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moves
}

func (s *servers) first() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *servers) use(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != at {
		s.log.Info("going over to another API server", "from", s.addrs[s.at], "to", s.addrs[at])
		s.goTo(at)
	}
}

// leave has the next one tried first, where at is the one in use.
func (s *servers) leave(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == at {
		s.goTo((at + 1) % len(s.addrs))
	}
}

// goTo has the server tried first, with s.mu held.
func (s *servers) goTo(at int) { s.at, s.bad, s.moves = at, 0, s.moves+1 }

// connection tells when it did not last.
type connection struct {
	net.Conn
	servers *servers
	at      int
	since   time.Time
	once    sync.Once
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.once.Do(func() {
		if time.Since(c.since) < shortLived {
			c.servers.leave(c.at)
		}
		c.servers.mu.Lock()
		defer c.servers.mu.Unlock()
		delete(c.servers.conns, c)
	})
	return c.Conn.Close()
}

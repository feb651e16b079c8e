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
)

// servers connects to one of several API servers of a cluster, whatever address
// is asked for. It stays with the one that answers, and takes the next when
// that one does not.
type servers struct {
	addrs []string
	log   *slog.Logger

	mu sync.Mutex
	at int // the one to try first
}

// newServers begins at another server on each node, so that they share the load.
func newServers(addrs []string, node string, log *slog.Logger) *servers {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return &servers{addrs: addrs, log: log, at: int(h.Sum32() % uint32(len(addrs)))}
}

// dial has the shape of net.Dialer.DialContext.
func (s *servers) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: probes}}
	first := s.first()
	var errs []error
	for i := range s.addrs {
		at := (first + i) % len(s.addrs)
		conn, err := dialer.DialContext(ctx, network, s.addrs[at])
		if err == nil {
			s.use(at)
			return &connection{Conn: conn, servers: s, at: at, since: time.Now()}, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("no API server accepts a connection: %w", errors.Join(errs...))
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
	}
	s.at = at
}

// leave has the next one tried first, where at is the one in use.
func (s *servers) leave(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == at {
		s.at = (at + 1) % len(s.addrs)
	}
}

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
	})
	return c.Conn.Close()
}

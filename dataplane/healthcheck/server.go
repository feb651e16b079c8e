// Package healthcheck answers healthCheckNodePort.
//
// A load balancer asks each node whether a Service with externalTrafficPolicy
// Local has endpoints there, and sends traffic only where it has. The Server
// answers per Service and address family, with kube-proxy's words
// (KUBE-PROXY §1.16).
package healthcheck

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

const retryInterval = 5 * time.Second // between attempts to listen where that failed

// Failure tells that a Service's health check cannot be answered at an address.
type Failure struct {
	Namespace, Service string
	Addr               netip.AddrPort
	Err                error
}

// Server listens on the healthCheckNodePort of every Service that has one, at
// the addresses where NodePorts answer. It follows both from Snapshot to
// Snapshot: kube-proxy takes the node's addresses once, at its start.
type Server struct {
	// OnFailure is told when an address cannot be listened on, once until that
	// changes. It must not block or call the Server. Set it before the first
	// Synced; nil: nobody is told, beside the log.
	OnFailure func(Failure)

	log     *slog.Logger
	healthy func() bool

	mu        sync.Mutex
	closed    bool
	known     *dataplane.Snapshot // what checks and addrs hold; nil: nothing yet
	checks    map[serviceID]*check
	addrs     []netip.Addr // to listen on
	listeners map[listenerID]*listener
	failed    map[listenerID]string // the last error
}

// serviceID is a Service in one family.
type serviceID struct {
	namespace, name string
	family          dataplane.Family
}

// listenerID is an address that a Service's load balancers ask at.
type listenerID struct {
	service serviceID
	addr    netip.AddrPort
}

// New makes a Server that listens nowhere yet. healthy tells whether this agent
// works, as /livez does; it is called for every request and must not block.
func New(log *slog.Logger, healthy func() bool) *Server {
	return &Server{
		log:       log,
		healthy:   healthy,
		checks:    map[serviceID]*check{},
		listeners: map[listenerID]*listener{},
		failed:    map[listenerID]string{},
	}
}

// Run tries again every few seconds where listening failed, until ctx ends. Then
// it closes the Server.
func (s *Server) Run(ctx context.Context) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := s.Close(); err != nil {
				s.log.Warn("cannot close the health check listeners", "error", err)
			}
			return
		case <-tick.C:
			s.listenAgain()
		}
	}
}

// Synced says that the kernel now forwards want. The Server answers for it, and
// listens as it asks, when Synced returns, whether or not Run runs. Where
// listening fails, the next call tries again. It costs what changed since the
// last call.
func (s *Server) Synced(want *dataplane.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.learn(want) || len(s.failed) > 0 {
		s.listen()
	}
}

// Close ends all listeners and connections.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for id, l := range s.listeners {
		errs = append(errs, l.close())
		delete(s.listeners, id)
	}
	return errors.Join(errs...)
}

// learn goes from the known Snapshot to want, and reports whether the
// listeners may have to follow.
func (s *Server) learn(want *dataplane.Snapshot) bool {
	var before dataplane.Ports
	nodeChanged := true
	if s.known != nil {
		before = s.known.Ports
		nodeChanged = s.known.Node != want.Node
	}
	s.known = want
	if nodeChanged {
		s.addrs = listenAddrs(want.Node)
	}
	checksChanged := false
	for old, cur := range dataplane.Diff(before, want.Ports) {
		checksChanged = s.update(old, cur) || checksChanged
	}
	for id, c := range s.checks {
		if c.ports == 0 {
			delete(s.checks, id)
		}
	}
	return nodeChanged || checksChanged
}

// update takes in one difference between two Snapshots, and reports whether a
// health check came, went or moved to another port.
func (s *Server) update(old, cur *dataplane.ServicePort) bool {
	changed := false
	if old != nil && old.HealthCheck != nil {
		c := s.checks[serviceOf(old)]
		c.ports--
		changed = c.ports == 0
	}
	if cur != nil && cur.HealthCheck != nil {
		id := serviceOf(cur)
		c := s.checks[id]
		if c == nil {
			c = &check{service: id}
			s.checks[id] = c
		}
		changed = changed || c.ports == 0 || c.port != cur.HealthCheck.Port
		c.ports++
		c.port = cur.HealthCheck.Port
		c.endpoints.Store(int64(cur.HealthCheck.LocalEndpoints))
	}
	return changed
}

func serviceOf(p *dataplane.ServicePort) serviceID {
	return serviceID{namespace: p.ID.Namespace, name: p.ID.Service, family: p.ID.Family}
}

// listenAddrs returns the addresses to listen on: the unspecified one of a family
// in which NodePorts answer everywhere, so that a load balancer's own address is
// among them, whatever makes it the node's. Elsewhere each address where
// NodePorts answer is listened on by itself: no address answers that should not,
// and another process may use the same port elsewhere. An IPv6 link-local
// address cannot be bound without its interface, and the addresses of a local
// prefix may be too many to listen on.
func listenAddrs(n *dataplane.Node) []netip.Addr {
	var addrs []netip.Addr
	for _, f := range n.Everywhere {
		addrs = append(addrs, f.Unspecified())
	}
	for _, p := range n.NodePorts {
		a := p.Addr()
		switch {
		case slices.Contains(n.Everywhere, dataplane.FamilyOf(a)):
		case a.IsLoopback():
			addrs = append(addrs, netip.AddrFrom4([4]byte{127, 0, 0, 1})) // 127.0.0.0/8
		case !p.IsSingleIP():
		case !a.IsLinkLocalUnicast() || a.Is4():
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// listen makes the listeners those that are wanted.
func (s *Server) listen() {
	wanted := map[listenerID]*check{}
	for id, c := range s.checks {
		for _, a := range s.addrs {
			if dataplane.FamilyOf(a) == id.family {
				wanted[listenerID{id, netip.AddrPortFrom(a, c.port)}] = c
			}
		}
	}
	// Close before open: a port may have moved from one Service to another.
	for id, l := range s.listeners {
		if l.check != wanted[id] {
			if err := l.close(); err != nil {
				s.log.Warn("cannot close a health check listener", "address", id.addr, "error", err)
			}
			delete(s.listeners, id)
		}
	}
	for id := range s.failed {
		if wanted[id] == nil {
			delete(s.failed, id)
		}
	}
	for id, c := range wanted {
		if s.listeners[id] == nil {
			s.open(id, c)
		}
	}
}

func (s *Server) open(id listenerID, c *check) {
	l, err := listenOn(id.addr, c, s.healthy)
	if err == nil {
		s.listeners[id] = l
		delete(s.failed, id)
		return
	}
	if s.failed[id] == err.Error() {
		return // told already
	}
	s.failed[id] = err.Error()
	s.log.Warn("cannot listen on a Service's healthCheckNodePort; trying again",
		"service", id.service.namespace+"/"+id.service.name, "address", id.addr, "error", err)
	if s.OnFailure != nil {
		s.OnFailure(Failure{Namespace: id.service.namespace, Service: id.service.name, Addr: id.addr, Err: err})
	}
}

func (s *Server) listenAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && len(s.failed) > 0 {
		s.listen()
	}
}

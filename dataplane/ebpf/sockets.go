package ebpf

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
)

// lostEndpoint is an endpoint that a ServicePort has no more.
type lostEndpoint struct {
	port     dataplane.PortID
	endpoint terminate.Endpoint
}

// lostEndpoints are the endpoints whose connected sockets must learn that they
// are gone, and those that are there again.
func (b *sockets) lostEndpoints(prev, want *dataplane.Snapshot) (lost []lostEndpoint, back []terminate.Endpoint) {
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		if old == nil || b.records[old.ID] == nil {
			continue
		}
		at := func(addr netip.AddrPort) terminate.Endpoint {
			return terminate.Endpoint{Service: b.records[old.ID].master.Id, Protocol: old.ID.Protocol, Addr: addr}
		}
		for _, addr := range goneFrom(old, cur) {
			lost = append(lost, lostEndpoint{old.ID, at(addr)})
		}
		if cur == nil {
			continue
		}
		for _, addr := range cur.Serving {
			if !slices.Contains(old.Serving, addr) {
				back = append(back, at(addr))
			}
		}
	}
	return lost, back
}

// countUsers counts the ServicePorts of endpoints as they change.
func (b *sockets) countUsers(prev, want *dataplane.Snapshot) {
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		b.ender.users.change(old, -1)
		b.ender.users.change(cur, 1)
	}
}

// goneFrom are the endpoints whose TCP connections end. A connection ends by
// itself unless its pod is gone: to leave a Service, or all of its
// EndpointSlices, is not that.
func goneFrom(old, cur *dataplane.ServicePort) []netip.AddrPort {
	if cur == nil || old.ID.Protocol != dataplane.TCP {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(old.Ending), func(a netip.AddrPort) bool { return slices.Contains(cur.Ending, a) })
}

// endSockets ends the sockets of endpoints that were lost, but for those of
// ServicePorts that were refused and so keep what they have, and for endpoints
// that come back while they wait.
func (b *sockets) endSockets(prev, want *dataplane.Snapshot, lost []lostEndpoint, back []terminate.Endpoint, refused []dataplane.PortError) {
	for _, r := range refused { // it was counted as wanted
		b.ender.users.change(want.Ports.Get(r.ID), -1)
		if prev != nil {
			b.ender.users.change(prev.Ports.Get(r.ID), 1)
		}
	}
	if len(back) > 0 {
		b.ender.keep(back)
	}
	if len(lost) == 0 {
		return
	}
	var gone []terminate.Endpoint
	for _, l := range lost {
		if !slices.ContainsFunc(refused, func(e dataplane.PortError) bool { return e.ID == l.port }) {
			gone = append(gone, l.endpoint)
		}
	}
	b.ender.add(gone)
}

// enderDelay joins Syncs that follow each other, and lets what was asked before
// the Sync be answered.
const enderDelay = time.Second

// ender ends sockets beside the Syncs, never in their way.
type ender struct {
	end       *terminate.Terminator
	connected *ebpf.Map // endpoints that sockets were connected to
	log       *slog.Logger
	wake      chan struct{}
	stop      chan struct{}
	done      sync.WaitGroup

	// users tells which endpoints have other ServicePorts, where the kernel cannot
	// tell the sockets of one from those of another; nil: it can.
	users *users

	mu   sync.Mutex
	gone []terminate.Endpoint
}

// users counts the ServicePorts of each endpoint. A nil one counts nothing.
type users struct {
	mu    sync.Mutex
	count map[peer]int
}

type peer struct {
	protocol dataplane.Protocol
	addr     netip.AddrPort
}

// start counts afresh.
func (u *users) start(ports dataplane.Ports) {
	if u == nil {
		return
	}
	count := map[peer]int{}
	for port := range ports.All() {
		addUser(count, port, 1)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count = count
}

// change counts a ServicePort's endpoints once more or less.
func (u *users) change(port *dataplane.ServicePort, by int) {
	if u == nil || port == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	addUser(u.count, port, by)
}

func addUser(count map[peer]int, port *dataplane.ServicePort, by int) {
	for _, list := range [][]netip.AddrPort{port.Serving, port.Ending} {
		for _, addr := range list {
			at := peer{port.ID.Protocol, addr}
			if count[at] += by; count[at] == 0 {
				delete(count, at)
			}
		}
	}
}

// without leaves out the endpoints that some ServicePort has.
func (u *users) without(gone []terminate.Endpoint) []terminate.Endpoint {
	if u == nil {
		return gone
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.DeleteFunc(gone, func(e terminate.Endpoint) bool { return u.count[peer{e.Protocol, e.Addr}] > 0 })
}

func startEnder(peers, connected *ebpf.Map, cgroup string, log *slog.Logger) (*ender, error) {
	end, err := terminate.Open(peers, cgroup, log)
	if err != nil {
		return nil, err
	}
	e := &ender{end: end, connected: connected, log: log, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	if !end.KnowsServices() {
		e.users = &users{}
	}
	e.done.Go(e.run)
	return e, nil
}

// keep takes endpoints that are there again from those that wait.
func (e *ender) keep(back []terminate.Endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone = slices.DeleteFunc(e.gone, func(g terminate.Endpoint) bool { return slices.Contains(back, g) })
}

func (e *ender) add(gone []terminate.Endpoint) {
	e.mu.Lock()
	e.gone = append(e.gone, gone...)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // it is on its way
	}
}

func (e *ender) run() {
	for {
		select {
		case <-e.stop:
			return
		case <-e.wake:
		}
		select {
		case <-e.stop:
			return
		case <-time.After(enderDelay):
		}
		e.mu.Lock()
		gone := e.gone
		e.gone = nil
		e.mu.Unlock()
		n, err := e.terminate(gone)
		if err != nil {
			e.log.Warn("ending sockets of endpoints that are gone; some clients may go on sending to them", "endpoints", len(gone), "error", err)
		}
		if n > 0 {
			e.log.Debug("ended sockets of endpoints that are gone", "endpoints", len(gone), "sockets", n)
		}
	}
}

// terminate ends the sockets of endpoints that are gone, and gives their number.
// To look for them costs a walk over all TCP sockets for each network namespace,
// so endpoints that no socket was connected to are left out.
func (e *ender) terminate(gone []terminate.Endpoint) (int, error) {
	gone = e.users.without(gone)
	keys := make([]sockEndpointKey, 0, len(gone))
	met := gone[:0]
	for _, g := range gone {
		key := sockEndpointKey{Service: g.Service, Addr: toAddr(g.Addr.Addr()), Port: toPort(g.Addr.Port()), Protocol: uint8(g.Protocol)}
		var once uint32
		if err := e.connected.Lookup(key, &once); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		met, keys = append(met, g), append(keys, key)
	}
	if len(met) == 0 {
		return 0, nil
	}
	n, err := e.end.Terminate(met)
	if err != nil {
		return n, err
	}
	return n, removeEach(e.connected, keys)
}

// close ends the goroutine; what waits is left.
func (e *ender) close() error {
	close(e.stop)
	e.done.Wait()
	return e.end.Close()
}

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
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/terminate"
)

// follow ends, in a while, the sockets of endpoints that went with a Sync from prev to
// want. It comes after the Sync. unknown says that the Sync read the maps back, whatever
// prev is. ServicePorts that were refused keep what they have. id returns the number
// that a ServicePort has, or had, in the maps.
func (e *ender) follow(prev, want *dataplane.Snapshot, unknown bool, refused []dataplane.PortError, id func(dataplane.PortID) (uint32, bool)) {
	keeps := map[dataplane.PortID]bool{}
	for _, r := range refused {
		keeps[r.ID] = true
	}
	e.countUsers(prev, want, unknown, keeps)
	from := prev
	if unknown {
		from = e.last // no Sync since has ended a socket
	}
	e.last = want
	if from == nil {
		return
	}
	var gone, back []terminate.Endpoint
	for old, cur := range dataplane.Diff(from.Ports, want.Ports) {
		if old == nil || cur == nil {
			continue
		}
		service, ok := id(old.ID)
		if !ok {
			continue
		}
		at := func(addr netip.AddrPort) terminate.Endpoint {
			return terminate.Endpoint{Service: service, Protocol: old.ID.Protocol, Addr: addr}
		}
		if !keeps[old.ID] {
			for _, addr := range goneFrom(old, cur) {
				gone = append(gone, at(addr))
			}
		}
		for _, e := range cur.Serving {
			if !old.Serves(e.Addr) {
				back = append(back, at(e.Addr))
			}
		}
	}
	if len(back) > 0 {
		e.keep(back)
	}
	if len(gone) > 0 {
		e.add(gone)
	}
}

// countUsers counts the ServicePorts of endpoints as they are after a Sync.
func (e *ender) countUsers(prev, want *dataplane.Snapshot, unknown bool, keeps map[dataplane.PortID]bool) {
	if e.users == nil {
		return
	}
	if !unknown {
		for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
			if !keeps[idOf(old, cur)] {
				e.users.change(old, -1)
				e.users.change(cur, 1)
			}
		}
		return
	}
	e.users.start(want.Ports)
	for id := range keeps { // they were counted as wanted
		e.users.change(want.Ports.Get(id), -1)
		if prev != nil {
			e.users.change(prev.Ports.Get(id), 1)
		}
	}
}

// goneFrom returns the endpoints whose TCP connections end. A connection ends by
// itself unless its pod is gone: to leave a Service, or all of its EndpointSlices, is
// not that.
func goneFrom(old, cur *dataplane.ServicePort) []netip.AddrPort {
	if old.ID.Protocol != dataplane.TCP {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(old.Ending), func(a netip.AddrPort) bool { return slices.Contains(cur.Ending, a) })
}

// enderDelay joins Syncs that follow each other, and lets what was asked before
// the Sync be answered.
const enderDelay = time.Second

// ender ends sockets alongside the Syncs, never in their way.
type ender struct {
	last *dataplane.Snapshot // of the last Sync that succeeded; nil: there was none

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
	add := func(addr netip.AddrPort) {
		at := peer{port.ID.Protocol, addr}
		if count[at] += by; count[at] == 0 {
			delete(count, at)
		}
	}
	for _, e := range port.Serving {
		add(e.Addr)
	}
	for _, addr := range port.Ending {
		add(addr)
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
	keys := make([]programs.SockEndpointKey, 0, len(gone))
	met := gone[:0]
	for _, g := range gone {
		key := g.Key()
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
	return n, programs.RemoveEach(e.connected, keys)
}

// close ends the goroutine; what waits is left.
func (e *ender) close() error {
	close(e.stop)
	e.done.Wait()
	return e.end.Close()
}

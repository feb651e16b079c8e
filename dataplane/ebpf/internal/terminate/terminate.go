package terminate

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// Endpoint is an endpoint that a Service port does not have any more.
type Endpoint struct {
	Service  uint32 // as sock.c notes it in peers
	Protocol dataplane.Protocol
	Addr     netip.AddrPort
}

// Terminator ends sockets. It is not for use by several goroutines at a time.
type Terminator struct {
	cgroup string
	end    ender
}

// ender ends the sockets of the thread's network namespace.
type ender interface {
	// most returns how many endpoints it can look for in one pass over the sockets.
	most() int
	// begin says which endpoints are gone.
	begin([]Endpoint) error
	// sockets ends the TCP sockets.
	sockets() error
	// ended is how many sockets were ended since begin.
	ended() (int, error)
	close() error
}

// Open makes a Terminator for the processes below a cgroup. peers is the map of
// that name of the socket hooks. Kernels before 6.5 cannot end a socket from an
// iterator: there it asks by netlink, for every connected socket whose peer is
// the endpoint, and the reason is logged.
func Open(peers *ebpf.Map, cgroup string, log *slog.Logger) (*Terminator, error) {
	t := &Terminator{cgroup: cgroup}
	programs, err := openPrograms(peers)
	if err == nil {
		t.end = programs
		return t, nil
	}
	log.Info("sockets of removed endpoints are ended by netlink, not by an iterator", "reason", err)
	t.end = &byNetlink{}
	return t, nil
}

// KnowsServices reports whether just the sockets are ended that asked for the
// endpoint's Service; by netlink all are that are connected to the endpoint.
func (t *Terminator) KnowsServices() bool {
	_, netlink := t.end.(*byNetlink)
	return !netlink
}

// Terminate ends the TCP sockets that are connected to the endpoints
// given, in every network namespace that a process below the cgroup is in, and
// in this process's. It gives their number. What failed in one namespace does
// not keep it from the others.
func (t *Terminator) Terminate(gone []Endpoint) (int, error) {
	spaces, err := namespaces(t.cgroup)
	errs := []error{err}
	total := 0
	for part := range slices.Chunk(gone, t.end.most()) {
		if err := t.end.begin(part); err != nil {
			return total, errors.Join(append(errs, err)...)
		}
		errs = append(errs, inEach(spaces, t.end.sockets))
		n, err := t.end.ended()
		total += n
		errs = append(errs, err)
	}
	return total, errors.Join(errs...)
}

// Close frees the programs.
func (t *Terminator) Close() error { return t.end.close() }

// Key returns the endpoint as the programs write it.
func (e Endpoint) Key() programs.SockEndpointKey {
	return programs.SockEndpointKey{
		Service: e.Service, Protocol: uint8(e.Protocol), Addr: programs.ToAddr(e.Addr.Addr()), Port: programs.ToPort(e.Addr.Port()),
	}
}

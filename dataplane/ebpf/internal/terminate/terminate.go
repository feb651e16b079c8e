package terminate

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
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
	// begin says which endpoints are gone.
	begin([]Endpoint) error
	// sockets ends the TCP sockets.
	sockets() error
	// ended is how many sockets were ended since begin.
	ended() (int, error)
	close() error
}

// mostAtOnce is how many endpoints are looked for in one pass over the sockets:
// MAX_GONE in bpf/terminate.c.
const mostAtOnce = 4096

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

// KnowsServices tells whether just the sockets are ended that asked for the
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
	for part := range slices.Chunk(gone, mostAtOnce) {
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

func toKey(e Endpoint) terminateEndpointKey {
	k := terminateEndpointKey{Service: e.Service, Protocol: uint8(e.Protocol)}
	a := e.Addr.Addr().As16()
	for i := range k.Addr.W {
		k.Addr.W[i] = binary.NativeEndian.Uint32(a[4*i:])
	}
	k.Port = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, e.Addr.Port()))
	return k
}

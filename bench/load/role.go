package load

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// roleName is the role of a host's process that makes traffic.
const roleName = "load"

// Roles are what the program's main function gives to netlab.Main.
func Roles() map[string]netlab.Role {
	return map[string]netlab.Role{roleName: func() map[string]any { return map[string]any{"Load": &service{}} }}
}

// service is the RPC service of a host's process.
type service struct{ server server }

// ServeArgs are the servers to start.
type ServeArgs struct {
	ID    byte // first byte of each answer; not 0
	Addrs []netip.Addr
}

// Serve starts the servers.
func (s *service) Serve(args ServeArgs, _ *struct{}) error {
	s.server.id = args.ID
	for _, a := range args.Addrs {
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
		if err := s.server.echoTCP(at(EchoPort)); err != nil {
			return err
		}
		if err := s.server.echoUDP(at(EchoPort)); err != nil {
			return err
		}
		if err := s.server.sinkUDP(at(SinkPort)); err != nil {
			return err
		}
	}
	return nil
}

// Sunk is how many datagrams came to the sink so far.
func (s *service) Sunk(_ struct{}, n *int64) error {
	*n = s.server.sunk.Load()
	return nil
}

// Run does a job.
func (s *service) Run(j Job, o *Outcome) error {
	got, err := run(j)
	if err != nil {
		return err
	}
	*o = *got
	return nil
}

// Probe asks until it is answered.
func (s *service) Probe(p Probe, at *time.Duration) (err error) {
	*at, err = probe(p)
	return err
}

// Host is a host of a lab with a process that makes traffic and answers it.
type Host struct {
	*netlab.Host
	process *netlab.Process
}

// Start starts the process.
func Start(h *netlab.Host) (*Host, error) {
	p, err := h.StartRole(roleName, nil)
	if err != nil {
		return nil, err
	}
	return &Host{h, p}, nil
}

// Serve starts the servers on the host.
func (h *Host) Serve(id byte) error {
	if err := h.process.Call("Load.Serve", ServeArgs{ID: id, Addrs: h.Addrs}, &struct{}{}); err != nil {
		return fmt.Errorf("serving on %s: %w", h.Name, err)
	}
	return nil
}

// Sunk is how many datagrams came to the host's sink so far.
func (h *Host) Sunk() (int64, error) {
	var n int64
	err := h.process.Call("Load.Sunk", struct{}{}, &n)
	return n, err
}

// Run does a job from the host.
func (h *Host) Run(j Job) (*Outcome, error) {
	var o Outcome
	if err := h.process.Call("Load.Run", j, &o); err != nil {
		return nil, fmt.Errorf("from %s: %w", h.Name, err)
	}
	return &o, nil
}

// Probe asks from the host until it is answered, and tells when.
func (h *Host) Probe(p Probe) (time.Duration, error) {
	var at time.Duration
	if err := h.process.Call("Load.Probe", p, &at); err != nil {
		return 0, fmt.Errorf("from %s: %w", h.Name, err)
	}
	return at, nil
}

package load

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// roleName is the role of a host's process that makes traffic.
const roleName = "load"

// Roles are what the program's main function gives to netlab.Main.
func Roles() map[string]netlab.Role {
	return map[string]netlab.Role{roleName: func() map[string]any { return map[string]any{"Load": &service{}} }}
}

// service is the RPC service of a host's process.
type service struct {
	server   server
	sessions sessions
}

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
		if err := s.server.bulkTCP(at(BulkPort)); err != nil {
			return err
		}
	}
	return nil
}

// ServeBlocks answers UDP at all addresses that the host has.
func (s *service) ServeBlocks(struct{}, *struct{}) error { return s.server.echoBlocks() }

// Pin moves the process to one CPU.
func (s *service) Pin(cpu int, _ *struct{}) error { return pin(cpu) }

// Open opens a session and gives its number.
func (s *service) Open(j Job, number *int) (err error) {
	*number, err = s.sessions.add(j)
	return err
}

// SliceArgs are a session and how long it works.
type SliceArgs struct {
	Number   int
	Duration time.Duration
}

// Slice lets a session work.
func (s *service) Slice(args SliceArgs, done *Slice) (err error) {
	*done, err = s.sessions.slice(args.Number, args.Duration)
	return err
}

// Close closes a session and tells the times of its operations.
func (s *service) Close(number int, times *hdrhistogram.Snapshot) error {
	got, err := s.sessions.remove(number)
	if err != nil {
		return err
	}
	*times = *got
	return nil
}

// Probe asks until it is answered.
func (s *service) Probe(p Probe, at *time.Duration) (err error) {
	*at, err = probe(p)
	return err
}

// Turnover watches endpoints replace others.
func (s *service) Turnover(t Turnover, at *TurnedOver) (err error) {
	*at, err = turnover(t)
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

// ServeBlocks answers UDP at all other addresses that the host has, with the third
// byte of the address.
func (h *Host) ServeBlocks() error {
	if err := h.process.Call("Load.ServeBlocks", struct{}{}, &struct{}{}); err != nil {
		return fmt.Errorf("serving on %s: %w", h.Name, err)
	}
	return nil
}

// Pin moves the host's process to one CPU.
func (h *Host) Pin(cpu int) error {
	if err := h.process.Call("Load.Pin", cpu, &struct{}{}); err != nil {
		return fmt.Errorf("on %s: %w", h.Name, err)
	}
	return nil
}

// CPU is the CPU time that the host's process has taken so far, what the kernel
// did on its behalf included.
func (h *Host) CPU() (time.Duration, error) { return cpuTime(h.process.Cmd.Process.Pid) }

// Session is a Job in progress on a host.
type Session struct {
	host   *Host
	number int
}

// Open opens a session.
func (h *Host) Open(j Job) (*Session, error) {
	s := &Session{host: h}
	if err := h.process.Call("Load.Open", j, &s.number); err != nil {
		return nil, fmt.Errorf("from %s: %w", h.Name, err)
	}
	return s, nil
}

// Slice lets the session work for a while.
func (s *Session) Slice(d time.Duration) (Slice, error) {
	var done Slice
	if err := s.host.process.Call("Load.Slice", SliceArgs{s.number, d}, &done); err != nil {
		return done, fmt.Errorf("from %s: %w", s.host.Name, err)
	}
	return done, nil
}

// Close closes the session and tells the times of its operations, in nanoseconds.
func (s *Session) Close() (*hdrhistogram.Histogram, error) {
	var times hdrhistogram.Snapshot
	if err := s.host.process.Call("Load.Close", s.number, &times); err != nil {
		return nil, fmt.Errorf("from %s: %w", s.host.Name, err)
	}
	return hdrhistogram.Import(&times), nil
}

// Probe asks from the host until it is answered, and tells when.
func (h *Host) Probe(p Probe) (time.Duration, error) {
	var at time.Duration
	if err := h.process.Call("Load.Probe", p, &at); err != nil {
		return 0, fmt.Errorf("from %s: %w", h.Name, err)
	}
	return at, nil
}

// Turnover asks from the host until new endpoints have replaced old ones.
func (h *Host) Turnover(t Turnover) (TurnedOver, error) {
	var at TurnedOver
	if err := h.process.Call("Load.Turnover", t, &at); err != nil {
		return at, fmt.Errorf("from %s: %w", h.Name, err)
	}
	return at, nil
}

package netlab

import (
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// The arguments of the host's RPC service, of this package's own use.
type (
	// HostIdentity tells a host's process who it is.
	HostIdentity struct {
		Name  string
		Addrs []netip.Addr
	}
	// ServeArgs is a server to start.
	ServeArgs struct {
		Protocol    string
		Port        uint16
		Addrs       []netip.Addr
		Transparent bool // takes what TPROXY gives to it; TCP alone
	}
	// AskManyArgs are requests to do.
	AskManyArgs struct {
		Request Request
		N       int
		AtATime int
	}
	// FetchArgs is a stream to fetch or push.
	FetchArgs struct {
		Request Request
		Bytes   int64
	}
	// LoadArgs is a load to start.
	LoadArgs struct {
		Request Request
		Workers int
		Every   time.Duration
		Held    bool
	}
)

// hostService is the RPC service of a host's process.
type hostService struct {
	mu      sync.Mutex
	who     HostIdentity
	next    int
	servers map[int]io.Closer
	loads   map[int]*load
	heard   atomic.Int64
	// One SCTP request to an address at a time: raw sockets' ICMP errors do not
	// tell ports apart.
	sctp map[netip.Addr]*sync.Mutex
	// sctpPort is the source port of the last SCTP request.
	sctpPort atomic.Uint32
}

func newHostService() *hostService {
	s := &hostService{servers: map[int]io.Closer{}, loads: map[int]*load{}, sctp: map[netip.Addr]*sync.Mutex{}}
	s.sctpPort.Store(randomNumber())
	return s
}

// withPort gives an SCTP request that has no source port the next one: a random
// one might be that of a request a moment ago, whose way conntrack still knows.
func (s *hostService) withPort(r Request) Request {
	const first, ports = 32768, 28000
	if r.Protocol == SCTP && r.From.Port() == 0 {
		r.From = netip.AddrPortFrom(r.From.Addr(), first+uint16(s.sctpPort.Add(1)%ports))
	}
	return r
}

// Begin tells the process who it is.
func (s *hostService) Begin(who HostIdentity, _ *struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who = who
	return nil
}

// Serve starts a server.
func (s *hostService) Serve(args ServeArgs, id *int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	server, err := serve(s.who.Name, args, &s.heard)
	if err != nil {
		return err
	}
	s.next++
	s.servers[s.next] = server
	*id = s.next
	return nil
}

// StopServer closes a server.
func (s *hostService) StopServer(id int, _ *struct{}) error {
	s.mu.Lock()
	server := s.servers[id]
	delete(s.servers, id)
	s.mu.Unlock()
	if server == nil {
		return fmt.Errorf("there is no server %d", id)
	}
	return server.Close()
}

// Heard is how much has reached the servers.
func (s *hostService) Heard(_ struct{}, n *int) error {
	*n = int(s.heard.Load())
	return nil
}

// Ask does one request.
func (s *hostService) Ask(r Request, a *Answer) error {
	*a = s.ask(r)
	return nil
}

func (s *hostService) ask(r Request) Answer {
	r = s.withPort(r)
	if r.Timeout == 0 {
		r.Timeout = time.Second
	}
	if r.Protocol == SCTP {
		turn := s.sctpTurn(r.To.Addr())
		turn.Lock()
		defer turn.Unlock()
	}
	return ask(r)
}

func (s *hostService) sctpTurn(to netip.Addr) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sctp[to] == nil {
		s.sctp[to] = &sync.Mutex{}
	}
	return s.sctp[to]
}

// AskMany does many requests.
func (s *hostService) AskMany(args AskManyArgs, t *Tally) error {
	start := time.Now()
	todo := make(chan struct{}, args.N)
	for range args.N {
		todo <- struct{}{}
	}
	close(todo)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range max(args.AtATime, 1) {
		all.Go(func() {
			for range todo {
				a := s.ask(args.Request)
				mu.Lock()
				t.add(a, time.Since(start))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return nil
}

// Fetch fetches a stream.
func (s *hostService) Fetch(args FetchArgs, a *Answer) error {
	*a = fetch(args.Request, args.Bytes)
	return nil
}

// Push sends a stream.
func (s *hostService) Push(args FetchArgs, a *Answer) error {
	*a = push(args.Request, args.Bytes)
	return nil
}

// StartLoad starts traffic that goes on.
func (s *hostService) StartLoad(args LoadArgs, id *int) error {
	if args.Request.Timeout == 0 {
		args.Request.Timeout = time.Second
	}
	if args.Held {
		args.Request = s.withPort(args.Request)
	}
	l, err := startLoad(args, s.ask)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.loads[s.next] = l
	*id = s.next
	return nil
}

// LoadSum sums up a load that goes on.
func (s *hostService) LoadSum(id int, t *Tally) error {
	s.mu.Lock()
	l := s.loads[id]
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("there is no load %d", id)
	}
	*t = l.sum()
	return nil
}

// StopLoad ends a load.
func (s *hostService) StopLoad(id int, t *Tally) error {
	s.mu.Lock()
	l := s.loads[id]
	delete(s.loads, id)
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("there is no load %d", id)
	}
	*t = l.stop()
	return nil
}

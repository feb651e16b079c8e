package netlab

import (
	"fmt"
	"net/netip"
	"time"
)

// The protocols of servers and requests. SCTP is an INIT packet answered by an
// INIT ACK, both made by hand: it needs no SCTP in the kernel.
const (
	TCP  = "tcp"
	UDP  = "udp"
	SCTP = "sctp"
)

// Request is one connection to open and one question to ask: who are you, and
// whom do you see?
type Request struct {
	Protocol string         // TCP, UDP or SCTP
	To       netip.AddrPort // where to
	From     netip.AddrPort // source; zero address or port: the kernel's choice
	Timeout  time.Duration  // for all of it; 0: one second
	Size     int            // UDP: bytes of the question, and of the answer at least; 0: some 26
	Shared   bool           // UDP: other sockets may have the same source port
	Mark     uint32         // of the socket's packets (SO_MARK)
}

// Outcome is how a Request ended.
type Outcome string

// The outcomes.
const (
	Answered    Outcome = "answered"
	Refused     Outcome = "refused"     // ECONNREFUSED: RST, or ICMP port unreachable
	TimedOut    Outcome = "timed out"   // nothing came back
	Unreachable Outcome = "unreachable" // ICMP said that there is no way
	Reset       Outcome = "reset"       // a connection that stood was torn down
	Failed      Outcome = "failed"      // anything else, such as a source address that is not ours
)

// Answer is what became of a Request.
type Answer struct {
	Outcome Outcome
	Server  string         // name of the host that answered
	Source  netip.AddrPort // client's address as the server saw it
	Local   netip.AddrPort // client's address as the client has it
	Took    time.Duration
	Resent  bool   // TCP: the SYN, or the answer to it, was lost and sent again
	Detail  string // error text
}

func (a Answer) String() string {
	if a.Outcome == Answered {
		return fmt.Sprintf("answered by %s, which saw %s", a.Server, a.Source)
	}
	return fmt.Sprintf("%s after %s (%s)", a.Outcome, a.Took.Round(time.Millisecond), a.Detail)
}

// Tally sums up many Requests.
type Tally struct {
	Requests int
	Failed   int            // not answered
	ByServer map[string]int // answers of each host
	First    Answer         // first one that failed
	FirstAt  time.Duration  // when that was, from the start
	Slowest  time.Duration  // longest answer
}

func (t *Tally) add(a Answer, at time.Duration) {
	t.Requests++
	if a.Outcome != Answered {
		if t.Failed == 0 {
			t.First, t.FirstAt = a, at
		}
		t.Failed++
		return
	}
	if t.ByServer == nil {
		t.ByServer = map[string]int{}
	}
	t.ByServer[a.Server]++
	t.Slowest = max(t.Slowest, a.Took)
}

func (t Tally) String() string {
	if t.Failed == 0 {
		return fmt.Sprintf("%d requests, none failed", t.Requests)
	}
	return fmt.Sprintf("%d requests, %d failed, the first after %s: %s", t.Requests, t.Failed, t.FirstAt.Round(time.Millisecond), t.First)
}

// Serve starts a server on each address of the host (or on those given). It
// answers with the host's name and the client's address as it sees it; see
// Hold and Fetch for what else it does.
func (h *Host) Serve(protocol string, port uint16, addrs ...netip.Addr) (*Server, error) {
	if len(addrs) == 0 {
		addrs = h.Addrs
	}
	return h.serve(ServeArgs{Protocol: protocol, Port: port, Addrs: addrs})
}

// ServeTaken starts a server that answers, as those of Serve do, the TCP connections
// that rules give to it by TPROXY, whatever their address.
func (h *Host) ServeTaken(port uint16) (*Server, error) {
	return h.serve(ServeArgs{Protocol: TCP, Port: port, Addrs: []netip.Addr{netip.IPv6Unspecified()}, Transparent: true})
}

func (h *Host) serve(args ServeArgs) (*Server, error) {
	s := &Server{host: h}
	if err := h.process.Call("Host.Serve", args, &s.id); err != nil {
		return nil, fmt.Errorf("serving %s port %d on %s: %w", args.Protocol, args.Port, h.Name, err)
	}
	return s, nil
}

// Server is a server on a host.
type Server struct {
	host *Host
	id   int
}

// Stop closes the server's sockets and its connections.
func (s *Server) Stop() error { return s.host.process.Call("Host.StopServer", s.id, &struct{}{}) }

// Heard is how many TCP connections, datagrams and SCTP INITs have reached the
// host's servers so far, answers that found their way back or not.
func (h *Host) Heard() (int, error) {
	var n int
	err := h.process.Call("Host.Heard", struct{}{}, &n)
	return n, err
}

// Ask does one Request. The error is of the lab itself; what becomes of the
// Request is in the Answer.
func (h *Host) Ask(r Request) (Answer, error) {
	var a Answer
	err := h.process.Call("Host.Ask", r, &a)
	return a, err
}

// AskMany does n Requests, a few at a time, each from a new socket.
func (h *Host) AskMany(r Request, n, atATime int) (Tally, error) {
	var t Tally
	err := h.process.Call("Host.AskMany", AskManyArgs{r, n, atATime}, &t)
	return t, err
}

// Fetch opens a TCP connection, has the server stream so many bytes and
// reports how that went.
func (h *Host) Fetch(r Request, bytes int64) (Answer, error) {
	var a Answer
	err := h.process.Call("Host.Fetch", FetchArgs{r, bytes}, &a)
	return a, err
}

// Push opens a TCP connection, sends so many bytes over it and reports how that
// went; the server tells when it has them all.
func (h *Host) Push(r Request, bytes int64) (Answer, error) {
	var a Answer
	err := h.process.Call("Host.Push", FetchArgs{r, bytes}, &a)
	return a, err
}

// Load is traffic that goes on until Stop, ten minutes at most.
type Load struct {
	host *Host
	id   int
}

// Load starts workers that each do the Request again and again from new
// sockets, every so often. A TCP connection whose SYN was lost is a failure,
// also where it stood after another one.
func (h *Host) Load(r Request, workers int, every time.Duration) (*Load, error) {
	return h.startLoad(LoadArgs{Request: r, Workers: workers, Every: every})
}

// Hold opens one connection (or one UDP socket) and asks over it every so
// often. An answer that comes from another server than the one before did, or
// not within the Request's timeout, is a failure. The error says that the
// connection could not be opened at all.
func (h *Host) Hold(r Request, every time.Duration) (*Load, error) {
	return h.startLoad(LoadArgs{Request: r, Workers: 1, Every: every, Held: true})
}

func (h *Host) startLoad(args LoadArgs) (*Load, error) {
	l := &Load{host: h}
	if err := h.process.Call("Host.StartLoad", args, &l.id); err != nil {
		return nil, fmt.Errorf("starting load on %s: %w", h.Name, err)
	}
	return l, nil
}

// Sum is the sum so far.
func (l *Load) Sum() (Tally, error) {
	var t Tally
	err := l.host.process.Call("Host.LoadSum", l.id, &t)
	return t, err
}

// Stop ends the load and sums it up.
func (l *Load) Stop() (Tally, error) {
	var t Tally
	err := l.host.process.Call("Host.StopLoad", l.id, &t)
	return t, err
}

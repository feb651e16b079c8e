package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The line protocol of the servers. On TCP the server greets first, "NAME
// ADDRESS"; then each line "ask" is answered by the greeting again, and a line
// "stream N" by N bytes; what follows a line "take N" is N bytes, which the
// greeting answers. On UDP each datagram is answered by the greeting and,
// after one more space, the datagram.
const (
	wordAsk    = "ask"
	wordStream = "stream"
	wordTake   = "take"
)

// mostStream bounds what one "stream" or "take" line is about, in bytes.
const mostStream = 1 << 40

// mostDatagram is as large as a datagram can be.
const mostDatagram = 1 << 16

func greeting(name string, client netip.AddrPort) string {
	return name + " " + netip.AddrPortFrom(client.Addr().Unmap(), client.Port()).String()
}

func parseGreeting(s string) (server string, source netip.AddrPort, err error) {
	server, rest, ok := strings.Cut(s, " ")
	if !ok {
		return "", netip.AddrPort{}, fmt.Errorf("strange answer %q", s)
	}
	addr, _, _ := strings.Cut(rest, " ")
	source, err = netip.ParseAddrPort(addr)
	if err != nil {
		return "", netip.AddrPort{}, fmt.Errorf("strange answer %q: %w", s, err)
	}
	return server, source, nil
}

// closers closes several things as one.
type closers []io.Closer

// Close implements io.Closer.
func (c closers) Close() error {
	errs := make([]error, len(c))
	for i, each := range c {
		errs[i] = each.Close()
	}
	return errors.Join(errs...)
}

// serve starts a server on each of the addresses. heard counts what reaches
// them: TCP connections, datagrams, INITs.
func serve(name string, args ServeArgs, heard *atomic.Int64) (io.Closer, error) {
	var all closers
	for _, a := range args.Addrs {
		var one io.Closer
		var err error
		switch at := netip.AddrPortFrom(a, args.Port); args.Protocol {
		case TCP:
			one, err = serveTCP(name, at, args.Transparent, heard)
		case UDP:
			one, err = serveUDP(name, at, heard)
		case SCTP:
			one, err = serveSCTP(name, at, heard)
		default:
			err = fmt.Errorf("there are no %s servers", args.Protocol)
		}
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
		all = append(all, one)
	}
	return all, nil
}

// tcpServer is a listener and its connections.
type tcpServer struct {
	listener *net.TCPListener
	mu       sync.Mutex
	conns    map[net.Conn]struct{} // nil: closed
}

func serveTCP(name string, at netip.AddrPort, transparent bool, heard *atomic.Int64) (io.Closer, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if transparent {
		if err := setTransparent(l); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	s := &tcpServer{listener: l, conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			c, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				heard.Add(1)
				go s.converse(name, c)
			}
		}
	}()
	return s, nil
}

// setTransparent has a listener take what TPROXY gives to it.
func setTransparent(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1) })
}

// Close implements io.Closer.
func (s *tcpServer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	return s.listener.Close()
}

// enter notes a connection; false: the server is closed.
func (s *tcpServer) enter(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *tcpServer) converse(name string, c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	if !s.enter(c) {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}()
	hello := greeting(name, c.RemoteAddr().(*net.TCPAddr).AddrPort()) + "\n"
	if _, err := io.WriteString(c, hello); err != nil {
		return
	}
	from := bufio.NewReader(c)
	for {
		line, err := from.ReadString('\n')
		if err != nil || answerLine(c, from, hello, strings.TrimSuffix(line, "\n")) != nil {
			return
		}
	}
}

// answerLine does what one line asks for.
func answerLine(c io.Writer, from io.Reader, hello, line string) error {
	word, number, _ := strings.Cut(line, " ")
	if word == wordAsk {
		_, err := io.WriteString(c, hello)
		return err
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > mostStream {
		return fmt.Errorf("cannot %s %q bytes", word, number)
	}
	switch word {
	case wordStream:
		_, err = io.CopyN(c, zeros{}, n)
	case wordTake:
		if _, err = io.CopyN(io.Discard, from, n); err == nil {
			_, err = io.WriteString(c, hello)
		}
	default:
		err = fmt.Errorf("there is no word %q", word)
	}
	return err
}

// zeros reads as zeros without end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func serveUDP(name string, at netip.AddrPort, heard *atomic.Int64) (io.Closer, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	// Datagrams of hundreds of clients wait while a busy machine does something else.
	const waiting = 4 << 20
	raw, err := c.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, waiting) })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setting the receive buffer: %w", err), c.Close())
	}
	go func() {
		buf := make([]byte, mostDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // an ICMP error of an earlier answer
				continue
			}
			heard.Add(1)
			_, _ = c.WriteToUDPAddrPort(append([]byte(greeting(name, from)+" "), buf[:n]...), from) // the client counts what is lost
		}
	}()
	return c, nil
}

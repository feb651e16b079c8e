package netlab

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// session is an open connection or UDP socket.
type session interface {
	// ask asks once; deadline is for this question.
	ask(deadline time.Time) (server string, source netip.AddrPort, err error)
	local() netip.AddrPort
	io.Closer
}

// ask does one Request.
func ask(r Request) Answer {
	start := time.Now()
	a, err := askOnce(r, start.Add(r.Timeout))
	a.Took = time.Since(start)
	if err != nil {
		a.Outcome, a.Detail = outcomeOf(err), err.Error()
		return a
	}
	a.Outcome = Answered
	return a
}

func askOnce(r Request, deadline time.Time) (Answer, error) {
	s, err := open(r, deadline)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = s.Close() }()
	a := Answer{Local: s.local()}
	if tcp, ok := s.(*tcpSession); ok {
		a.Resent = tcp.resent
	}
	a.Server, a.Source, err = s.ask(deadline)
	return a, err
}

// outcomeOf tells what an error of a socket means.
func outcomeOf(err error) Outcome {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES):
		return Unreachable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	}
	return Failed
}

// open opens a session. A TCP connection stands when it returns; the others
// send nothing before the first question.
func open(r Request, deadline time.Time) (session, error) {
	switch r.Protocol {
	case TCP:
		return openTCP(r, deadline)
	case UDP:
		return openUDP(r, deadline)
	case SCTP:
		return openSCTP(r, deadline)
	}
	return nil, fmt.Errorf("there are no %s requests", r.Protocol)
}

func dialer(r Request, deadline time.Time) net.Dialer {
	d := net.Dialer{Deadline: deadline}
	d.Control = func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return setOptions(fd, r) })
	}
	if !r.From.Addr().IsValid() && r.From.Port() == 0 {
		return d
	}
	from := r.From
	if !from.Addr().IsValid() {
		from = netip.AddrPortFrom(unspecifiedLike(r.To.Addr()), from.Port())
	}
	switch r.Protocol {
	case TCP:
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	case UDP:
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	case SCTP:
		d.LocalAddr = &net.IPAddr{IP: from.Addr().AsSlice()}
	}
	return d
}

// setOptions readies the socket of a Request.
func setOptions(fd int, r Request) error {
	if r.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(r.Mark)); err != nil {
			return err
		}
	}
	switch r.Protocol {
	case TCP:
		// A chosen port may be used again at once. Not so for UDP, where this lets
		// two sockets have the same port.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	case UDP:
		if r.Shared {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				return err
			}
		}
		return reportAllErrors(fd, r)
	}
	return nil
}

// reportAllErrors makes a UDP or raw socket report every ICMP error, also "no
// route", which it does not unasked.
func reportAllErrors(fd int, r Request) error {
	if r.To.Addr().Is4() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
}

// control runs f on a connection's socket.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

func unspecifiedLike(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// tcpSession is a TCP connection to a server of serveTCP.
type tcpSession struct {
	conn    *net.TCPConn
	reader  *bufio.Reader
	greeted bool
	resent  bool // the SYN, or its answer
}

func openTCP(r Request, deadline time.Time) (*tcpSession, error) {
	d := dialer(r, deadline)
	c, err := d.Dial("tcp", r.To.String())
	if err != nil {
		return nil, err
	}
	s := &tcpSession{conn: c.(*net.TCPConn), reader: bufio.NewReader(c)}
	if s.resent, err = retransmitted(s.conn); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

// retransmitted tells whether a connection that has just been made had to send
// anything again, which can only be its SYN.
func retransmitted(c *net.TCPConn) (bool, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	err = control(raw, func(fd int) error {
		var err error
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return err == nil && info.Total_retrans > 0, err
}

func (s *tcpSession) ask(deadline time.Time) (string, netip.AddrPort, error) {
	if err := s.conn.SetDeadline(deadline); err != nil {
		return "", netip.AddrPort{}, err
	}
	if s.greeted {
		if _, err := io.WriteString(s.conn, wordAsk+"\n"); err != nil {
			return "", netip.AddrPort{}, err
		}
	}
	line, err := s.reader.ReadString('\n')
	if err != nil {
		return "", netip.AddrPort{}, err
	}
	s.greeted = true
	return parseGreeting(line[:len(line)-1])
}

func (s *tcpSession) local() netip.AddrPort { return s.conn.LocalAddr().(*net.TCPAddr).AddrPort() }

// Close implements io.Closer.
func (s *tcpSession) Close() error { return s.conn.Close() }

// fetch has a server stream bytes over a connection of its own.
func fetch(r Request, n int64) Answer {
	return transfer(r, func(s *tcpSession) error {
		if _, err := fmt.Fprintf(s.conn, "%s %d\n", wordStream, n); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, s.reader, n)
		return err
	})
}

// push sends a server bytes over a connection of its own.
func push(r Request, n int64) Answer {
	return transfer(r, func(s *tcpSession) error {
		if _, err := fmt.Fprintf(s.conn, "%s %d\n", wordTake, n); err != nil {
			return err
		}
		if _, err := io.CopyN(s.conn, zeros{}, n); err != nil {
			return err
		}
		_, err := s.reader.ReadString('\n')
		return err
	})
}

// transfer does something over a TCP connection after the first greeting.
func transfer(r Request, do func(*tcpSession) error) Answer {
	start := time.Now()
	a, err := transferOnce(r, do, start.Add(r.Timeout))
	a.Took = time.Since(start)
	if err != nil {
		a.Outcome, a.Detail = outcomeOf(err), err.Error()
		return a
	}
	a.Outcome = Answered
	return a
}

func transferOnce(r Request, do func(*tcpSession) error, deadline time.Time) (Answer, error) {
	s, err := openTCP(r, deadline)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = s.Close() }()
	a := Answer{Local: s.local()}
	if a.Server, a.Source, err = s.ask(deadline); err != nil {
		return a, err
	}
	return a, do(s)
}

// filtered tells that a rule of this host's own took the packet on its way out.
// Whether it was rejected or dropped shows at the next read.
func filtered(err error) bool { return errors.Is(err, unix.EPERM) }

// udpSession is a connected UDP socket, so that ICMP errors reach it.
type udpSession struct {
	conn *net.UDPConn
	size int // of a question
}

func openUDP(r Request, deadline time.Time) (*udpSession, error) {
	d := dialer(r, deadline)
	c, err := d.Dial("udp", r.To.String())
	if err != nil {
		return nil, err
	}
	return &udpSession{c.(*net.UDPConn), r.Size}, nil
}

func (s *udpSession) ask(deadline time.Time) (string, netip.AddrPort, error) {
	if err := s.conn.SetDeadline(deadline); err != nil {
		return "", netip.AddrPort{}, err
	}
	question := []byte(strings.Repeat(" ", max(s.size-len(rand.Text()), 0)) + rand.Text())
	if _, err := s.conn.Write(question); err != nil && !filtered(err) {
		return "", netip.AddrPort{}, err
	}
	buf := make([]byte, mostDatagram)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return "", netip.AddrPort{}, err
		}
		if bytes.HasSuffix(buf[:n], question) { // not a late answer to an earlier one
			return parseGreeting(string(buf[:n]))
		}
	}
}

func (s *udpSession) local() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close implements io.Closer.
func (s *udpSession) Close() error { return s.conn.Close() }

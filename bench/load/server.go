package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// acceptors is how many connections a server holds at a time.
const acceptors = 16

// idle is how long a server keeps a connection that says nothing.
const idle = 10 * time.Minute

// server is the sockets of a host; they last as long as its process.
type server struct {
	id byte // first byte of each answer
}

// echoTCP answers each message by itself.
func (s *server) echoTCP(at netip.AddrPort) error { return s.listen(at, s.echo) }

// bulkTCP answers one byte for each bulk, which says first how long it is.
func (s *server) bulkTCP(at netip.AddrPort) error { return s.listen(at, s.swallow) }

// listen accepts connections and talks over each.
func (s *server) listen(at netip.AddrPort, talk func(fd int)) error {
	fd, err := bound(unix.SOCK_STREAM, at)
	if err != nil {
		return err
	}
	const backlog = 4096
	if err := unix.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listening at %s: %w", at, err)
	}
	for range acceptors {
		go func() {
			for {
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
					return
				}
				if err == nil {
					s.converse(c, talk)
				}
			}
		}()
	}
	return nil
}

func (s *server) converse(fd int, talk func(fd int)) {
	defer func() { _ = unix.Close(fd) }()
	tv := unix.NsecToTimeval(int64(idle))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	talk(fd)
}

func (s *server) echo(fd int) {
	buf := make([]byte, messageSize*16)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		buf[0] = s.id
		if writeAll(fd, buf[:n]) != nil {
			return
		}
	}
}

func (s *server) swallow(fd int) {
	const size = 256 << 10
	if fixBuffers(fd) != nil {
		return // the client sees the connection end
	}
	buf := make([]byte, size)
	for {
		if readAll(fd, buf[:bulkHeader]) != nil {
			return
		}
		for left := int(binary.BigEndian.Uint64(buf)); left > 0; {
			n := min(left, size)
			if readAll(fd, buf[:n]) != nil {
				return
			}
			left -= n
		}
		if writeAll(fd, []byte{s.id}) != nil {
			return
		}
	}
}

// echoUDP answers each datagram by itself.
func (s *server) echoUDP(at netip.AddrPort) error {
	fd, err := bound(unix.SOCK_DGRAM, at)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EBADF) {
				return
			}
			if err != nil || n == 0 || from == nil {
				continue
			}
			buf[0] = s.id
			_ = unix.Sendto(fd, buf[:n], 0, from) // the client counts what is lost
		}
	}()
	return nil
}

// echoBlocks answers datagrams at all addresses that no other socket has, each by
// itself. The first byte of an answer is the third one of the address.
func (s *server) echoBlocks() error {
	fd, err := bound(unix.SOCK_DGRAM, netip.AddrPortFrom(netip.IPv4Unspecified(), EchoPort))
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
		return errors.Join(fmt.Errorf("setting IP_PKTINFO: %w", err), unix.Close(fd))
	}
	go func() {
		buf, control := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		for {
			n, m, _, from, err := unix.Recvmsg(fd, buf, control, 0)
			if errors.Is(err, unix.EBADF) {
				return
			}
			at, ok := asked(control[:m])
			if err != nil || n == 0 || !ok {
				continue
			}
			buf[0] = at[2]
			_, _ = unix.SendmsgN(fd, buf[:n], unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: at}), from, 0) // the client counts what is lost
		}
	}()
	return nil
}

// asked is the address that a datagram was sent to.
func asked(control []byte) (at [4]byte, ok bool) {
	all, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(all) != 1 || len(all[0].Data) < unix.SizeofInet4Pktinfo {
		return at, false
	}
	const addr = 8 // struct in_pktinfo: the interface, the local address, the one in the header
	return [4]byte(all[0].Data[addr:unix.SizeofInet4Pktinfo]), true
}

func bound(kind int, at netip.AddrPort) (int, error) {
	family, sa := sockaddr(at)
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("setting SO_REUSEADDR: %w", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, errors.Join(fmt.Errorf("binding %s: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

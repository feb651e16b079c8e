package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// open makes a socket that gives up after a time.
func open(family, kind int, timeout time.Duration) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(timeout))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return -1, errors.Join(fmt.Errorf("setting a socket's timeout: %w", err), unix.Close(fd))
		}
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return -1, errors.Join(fmt.Errorf("setting TCP_NODELAY: %w", err), unix.Close(fd))
		}
	}
	return fd, nil
}

// fixBuffers gives a socket buffers that do not grow: how far the kernel has let them
// grow would tell two equal connections apart.
func fixBuffers(fd int) error {
	const size = 200 << 10
	for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size); err != nil {
			return fmt.Errorf("setting the size of a socket's buffers: %w", err)
		}
	}
	return nil
}

// connect makes a socket that is connected.
func connect(kind int, to netip.AddrPort, timeout time.Duration) (int, error) {
	family, sa := sockaddr(to)
	fd, err := open(family, kind, timeout)
	if err != nil {
		return -1, err
	}
	for {
		err = unix.Connect(fd, sa)
		// The runtime's signals interrupt; a connect that went on is told by EALREADY or EISCONN.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EALREADY) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EISCONN) {
		return -1, errors.Join(fmt.Errorf("connecting to %s: %w", to, err), unix.Close(fd))
	}
	return fd, nil
}

// reset closes a connection so that no port stays behind in TIME_WAIT.
func reset(fd int) error {
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return unix.Close(fd)
}

// ask sends a message over a connection and reads its answer.
func ask(fd int, buf []byte) error {
	if err := writeAll(fd, buf); err != nil {
		return err
	}
	return readAll(fd, buf)
}

func writeAll(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Write(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sending a request: %w", err)
		}
		buf = buf[n:]
	}
	return nil
}

func readAll(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("reading an answer: %w", err)
		}
		buf = buf[n:]
	}
	return nil
}

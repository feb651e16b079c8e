package follow

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Message is a netlink message of the kernel.
type Message struct {
	Type   uint16
	PortID uint32 // of the netlink socket that asked for the change; 0: the kernel itself
	Body   []byte // what follows the header
}

var errTruncated = errors.New("a message was cut short")

// receive waits for a datagram of the kernel and returns its length.
func (f *Follower) receive(ctx context.Context, file *os.File) (int, error) {
	if f.data == nil {
		f.data = make([]byte, mostMessage)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	for {
		if err := file.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
		ended := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
		n, err := f.await(conn)
		ended()
		// The end of an earlier context may have come late.
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			continue
		}
		return n, err
	}
}

// await reads a datagram as soon as there is one.
func (f *Follower) await(conn syscall.RawConn) (n int, err error) {
	failed := conn.Read(func(fd uintptr) bool {
		for {
			n, err = f.read(int(fd))
			if errors.Is(err, errForeign) || errors.Is(err, unix.EINTR) {
				continue
			}
			return !errors.Is(err, unix.EAGAIN)
		}
	})
	if failed != nil {
		return 0, failed
	}
	return n, err
}

var errForeign = errors.New("another program sent this")

// read reads the datagram that waits next.
func (f *Follower) read(fd int) (int, error) {
	n, _, flags, from, err := unix.Recvmsg(fd, f.data, nil, 0)
	if err != nil {
		return 0, err
	}
	if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid != 0 {
		return 0, errForeign
	}
	if flags&unix.MSG_TRUNC != 0 {
		return 0, errTruncated
	}
	return n, nil
}

// mostDrained is how many datagrams one Drain reads.
const mostDrained = 64

// Drain reads what waits already and forgets it, for a follower that is about to
// read again what it follows. What still waits after many messages is the next
// change.
func (f *Follower) Drain() error {
	file, renewed, err := f.subscribed()
	if err != nil || renewed {
		return err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if f.data == nil {
		f.data = make([]byte, mostMessage)
	}
	return conn.Control(func(fd uintptr) {
		for range mostDrained {
			if _, err := f.read(int(fd)); errors.Is(err, unix.EAGAIN) {
				return
			}
		}
	})
}

// parse takes a datagram apart.
func parse(data []byte) []Message {
	var out []Message
	for len(data) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(data))
		if length < unix.SizeofNlMsghdr || length > len(data) {
			break
		}
		out = append(out, Message{
			Type: binary.NativeEndian.Uint16(data[4:]), PortID: binary.NativeEndian.Uint32(data[12:]), Body: data[unix.SizeofNlMsghdr:length],
		})
		data = data[min((length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(data)):]
	}
	return out
}

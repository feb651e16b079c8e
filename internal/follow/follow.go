// Package follow follows what the kernel notifies by netlink, so that no follower
// misses a change without knowing.
//
// It is at the top because the watcher and the backends both follow netlink. The
// watcher imports no room below dataplane, so that it can be read without any of
// them.
package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errorPause follows each error, which may last: the kernel drops messages that
// nobody reads in time.
const errorPause = 100 * time.Millisecond

// mostMessage is the most bytes of a datagram. The kernel's notifications have at
// most NLMSG_GOODSIZE, which is 8 KiB.
const mostMessage = 32 << 10

// ErrMissed is wrapped by each error of Next after which the follower goes on. It
// may have missed changes and has to read again what it follows.
var ErrMissed = errors.New("changes may have been missed")

// Source is what to follow.
type Source struct {
	Protocol int      // as unix.NETLINK_ROUTE
	Groups   []uint32 // as unix.RTNLGRP_LINK
	// Buffer is the most bytes that wait unread. Zero means the system's default.
	Buffer int
	// Filter picks the messages that the kernel keeps. Empty means all of them.
	Filter []unix.SockFilter
	// In runs a function in the network namespace to follow when it has to be
	// subscribed to again. Nil means the one that Next is called in.
	In func(do func() error) error
}

// Follower is a subscription to groups of netlink in one network namespace. After
// an error it subscribes again. One goroutine at a time calls Next or Drain; any
// may call the other methods.
type Follower struct {
	source Source
	data   []byte    // what Next read
	again  time.Time // not before then is anything received again

	mu     sync.Mutex
	file   *os.File // nil: to be subscribed to again
	paused bool
	closed bool
	over   chan struct{} // closed by Close
}

// Start subscribes in the calling thread's network namespace.
func Start(s Source) (*Follower, error) {
	f := &Follower{source: s, over: make(chan struct{})}
	file, err := f.subscribe()
	if err != nil {
		return nil, err
	}
	f.file = file
	return f, nil
}

// Next waits for changes and returns their messages, which are valid until the
// next call. An error that wraps ErrMissed means that changes may have been
// missed: call Next again. Any other error is the context's, or os.ErrClosed
// after Close.
func (f *Follower) Next(ctx context.Context) ([]Message, error) {
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	file, renewed, err := f.subscribed()
	switch {
	case errors.Is(err, os.ErrClosed):
		return nil, err
	case err != nil:
		return nil, f.missed(err)
	case renewed:
		return nil, fmt.Errorf("%w: the subscription was renewed", ErrMissed)
	}
	n, err := f.receive(ctx, file)
	switch {
	case err == nil:
		return parse(f.data[:n]), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case f.isClosed():
		return nil, os.ErrClosed
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, errTruncated): // the subscription goes on
		return nil, f.missed(err)
	}
	f.drop(file)
	return nil, f.missed(err)
}

// wait waits until the pause after an error is over.
func (f *Follower) wait(ctx context.Context) error {
	pause := time.Until(f.again)
	if pause <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.over:
		return os.ErrClosed
	case <-time.After(pause):
		return nil
	}
}

func (f *Follower) missed(err error) error {
	f.again = time.Now().Add(errorPause)
	return fmt.Errorf("%w: %w", ErrMissed, err)
}

func (f *Follower) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// subscribed returns the subscription, and whether it had to be renewed.
func (f *Follower) subscribed() (file *os.File, renewed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, os.ErrClosed
	}
	if f.file != nil {
		return f.file, false, nil
	}
	in := f.source.In
	if in == nil {
		in = func(do func() error) error { return do() }
	}
	err = in(func() (err error) {
		f.file, err = f.subscribe()
		return err
	})
	return f.file, true, err
}

// drop gives up a subscription after an error.
func (f *Follower) drop(file *os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = file.Close()
	if f.file == file {
		f.file = nil
	}
}

// subscribe opens a socket that hears of the groups.
func (f *Follower) subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, f.source.Protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	// The filter comes before the groups, so that nothing else gets in.
	err = errors.Join(f.filter(fd), setBuffer(fd, f.source.Buffer), unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err == nil && !f.paused {
		err = f.membership(fd, unix.NETLINK_ADD_MEMBERSHIP)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("subscribing to netlink: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (f *Follower) filter(fd int) error {
	if len(f.source.Filter) == 0 {
		return nil
	}
	program := unix.SockFprog{Len: uint16(len(f.source.Filter)), Filter: &f.source.Filter[0]} //nolint:gosec // the kernel takes 4096
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}

// setBuffer sets how many bytes may wait. Whoever may not pass the system's limit
// gets what is below it.
func setBuffer(fd, bytes int) error {
	if bytes == 0 || unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
}

// membership joins or leaves the groups.
func (f *Follower) membership(fd, option int) error {
	for _, g := range f.source.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, int(g)); err != nil {
			return err
		}
	}
	return nil
}

// SetBuffer changes how many bytes may wait unread.
func (f *Follower) SetBuffer(bytes int) error {
	return f.change(func() { f.source.Buffer = bytes }, func(fd int) error { return setBuffer(fd, bytes) })
}

// Pause stops listening until Resume. The follower misses what changes meanwhile.
func (f *Follower) Pause() error {
	return f.change(func() { f.paused = true }, func(fd int) error { return f.membership(fd, unix.NETLINK_DROP_MEMBERSHIP) })
}

// Resume listens again.
func (f *Follower) Resume() error {
	return f.change(func() { f.paused = false }, func(fd int) error { return f.membership(fd, unix.NETLINK_ADD_MEMBERSHIP) })
}

// change notes something for the subscriptions to come and does it to this one.
func (f *Follower) change(note func(), do func(fd int) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	note()
	if f.closed {
		return os.ErrClosed
	}
	if f.file == nil {
		return nil
	}
	raw, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = do(int(fd)) }), err)
}

// Close ends the subscription, and a Next that waits.
func (f *Follower) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	close(f.over)
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// Package lock lets one process at a time program the Services of a network namespace.
//
// An agent and a cleanup would undo each other's work, and two agents would mix
// their Services, whatever their backends. The lock is a flock on a file that
// only root can open, because whoever can open a file can lock it. The kernel
// frees the lock of a process that ended in any way.
package lock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where the files are. Pods must share it with their host.
const Dir = "/run/switchyard"

// poll is the pause between two tries.
const poll = 100 * time.Millisecond

// Lock is held until it is released or its process ends.
type Lock struct {
	file *os.File
}

// Options say who takes a lock, and where.
type Options struct {
	Dir  string        // of the file; empty means Dir
	As   string        // the command that takes it, for others to read
	Wait time.Duration // how long to wait for another process to end; zero means not at all
	Log  *slog.Logger
}

// HeldError reports that another process holds the lock.
type HeldError struct {
	Holder string // its command and pid
	Path   string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s programs the Services of this network namespace and holds lock %s", e.Holder, e.Path)
}

// Take takes the lock of the network namespace that it is called in. If another
// process holds the lock for longer than Wait, the error is a *HeldError.
func Take(ctx context.Context, o Options) (*Lock, error) {
	file, err := Open(o.Dir, "lock")
	if err != nil {
		return nil, err
	}
	l := &Lock{file}
	held, err := l.try()
	for deadline := time.Now().Add(o.Wait); held != nil && time.Now().Before(deadline); held, err = l.try() {
		if o.Log != nil {
			o.Log.Info("waiting for another process that programs this network namespace to end", "holder", held.Holder, "longest", o.Wait)
			o.Log = nil
		}
		select {
		case <-ctx.Done():
			l.Release()
			return nil, fmt.Errorf("waiting for %s to end: %w", held.Holder, ctx.Err())
		case <-time.After(poll):
		}
	}
	if held != nil {
		err = held
	}
	if err == nil {
		err = l.sign(o.As)
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// Release lets others take the lock.
func (l *Lock) Release() { _ = l.file.Close() } // the file stays: to remove it would let two processes lock two files

// try takes the lock if it is free.
func (l *Lock) try() (*HeldError, error) {
	err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		return nil, nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		return &HeldError{Holder: l.holder(), Path: l.file.Name()}, nil
	}
	return nil, fmt.Errorf("locking %s: %w", l.file.Name(), err)
}

// sign writes who holds the lock.
func (l *Lock) sign(as string) error {
	text := fmt.Sprintf("switchyard %s\n%d\n", as, os.Getpid())
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("writing to lock %s: %w", l.file.Name(), err)
	}
	if _, err := l.file.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("writing to lock %s: %w", l.file.Name(), err)
	}
	return nil
}

// holder reads who holds the lock. The kernel knows its pid as this process sees
// it. The file has the pid as the holder sees it, which in a pod is another.
func (l *Lock) holder() string {
	text, err := io.ReadAll(io.NewSectionReader(l.file, 0, 1<<10))
	command, own, ok := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if err != nil || !ok {
		command, own = "another process", "unknown"
	}
	if pid, ok := l.pid(); ok {
		return fmt.Sprintf("%s (pid %d)", command, pid)
	}
	return fmt.Sprintf("%s (pid %s in its own pid namespace)", command, own)
}

// pid finds the holder in /proc/locks, which leaves out the processes that this
// pid namespace does not have.
func (l *Lock) pid() (int, bool) {
	var s unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &s); err != nil {
		return 0, false
	}
	at := fmt.Sprintf("%02x:%02x:%d", unix.Major(s.Dev), unix.Minor(s.Dev), s.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, false
	}
	return flockAt(locks, at)
}

// flockAt returns who holds the flock of a file, by the text of /proc/locks:
//
//	1: FLOCK  ADVISORY  WRITE 4321 00:1a:77 0 EOF
func flockAt(locks []byte, at string) (pid int, ok bool) {
	for line := range bytes.Lines(locks) {
		f := strings.Fields(string(line))
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != at {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid, true
		}
	}
	return 0, false
}

// Open opens the file of a name for the network namespace that it is called in,
// for locks of other purposes too. Nobody but root can open it.
func Open(dir, name string) (*os.File, error) {
	if dir == "" {
		dir = Dir
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("finding the network namespace: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of locks: %w", err)
	}
	s, err := os.Stat(dir)
	if err == nil && s.Mode().Perm() != 0o700 { // a kubelet makes it for everybody to read
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("closing the directory of locks to others: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%d", name, ns.Ino))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock, as only root can: %w", err)
	}
	return file, nil
}

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/lock"
)

// Lock lets one Switchyard at a time read the tables of a network namespace
// and write what it concludes from them. The agent holds a lock for its life; this
// one is for the commands that it starts.
//
// The commands inherit it: a command that outlives an agent killed with
// SIGKILL keeps the next agent waiting until it is done, and so cannot write
// behind that one's back.
type Lock struct {
	file *os.File
	// xtables is held by the command whose turn it is with the xtables lock, which
	// legacy takes for both families. iptables-restore asks for it once a second and gives up in the
	// end, so that two of ours must not wait for each other there.
	xtables sync.Mutex
}

// lockPoll and lockMost are how often and how long the lock is tried for. A
// command of 10,000 Services on a busy machine may take this long.
const (
	lockPoll = 20 * time.Millisecond
	lockMost = time.Minute
)

var errWriter = errors.New("another Switchyard process is writing iptables rules in this network namespace")

// OpenLock opens the lock of this process's network namespace.
func OpenLock(dir string) (*Lock, error) {
	f, err := lock.Open(dir, "iptables")
	if err != nil {
		return nil, err
	}
	return &Lock{file: f}, nil
}

// Lock waits for its turn. Call the function that it returns when done.
func (l *Lock) Lock(ctx context.Context) (unlock func(), err error) {
	for deadline := time.Now().Add(lockMost); ; {
		err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN) }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, fmt.Errorf("locking %s: %w", l.file.Name(), err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%w: not done within %v", errWriter, lockMost)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another writer: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// Close gives the lock up.
func (l *Lock) Close() error { return l.file.Close() }

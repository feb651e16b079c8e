package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

const (
	// idleMost is how long a command may use no processor time before it counts as
	// hanging. With the wait for the xtables lock it is less than the time after which
	// the agent counts as stuck.
	idleMost = 40 * time.Second
	// idleShare is the part of it that a program gets which hung at its last run.
	idleShare = 5
	// idlePolls is how often processor time is read in what a command gets.
	idlePolls = 8
)

var errHangs = errors.New("it hangs: it uses no processor time")

// guard stops a command that hangs. How long a command takes says nothing, as a slow
// machine may have many Services; a command that uses processor time makes progress.
//
// What remains: a command that computes for ever is stopped by commandMost alone, and
// one that the kernel does not let die is waited for.
type guard struct {
	commands *Commands
	path     string
	ctx      context.Context
	stop     context.CancelCauseFunc
	cancel   context.CancelFunc
	watched  chan struct{} // closed when nobody looks at the command any more
}

// guard returns a guard for one run of a program. Make the command with its ctx, call
// watch once it is started, and end once it has ended.
func (c *Commands) guard(ctx context.Context, path string) *guard {
	g := &guard{commands: c, path: path, watched: make(chan struct{})}
	ctx, g.cancel = context.WithTimeout(ctx, c.most)
	g.ctx, g.stop = context.WithCancelCause(ctx)
	close(g.watched)
	return g
}

// watch stops a started command once it hangs.
func (g *guard) watch(cmd *exec.Cmd) {
	g.watched = make(chan struct{})
	go func() {
		defer close(g.watched)
		idle := g.commands.idle(g.path)
		poll := time.NewTicker(max(idle/idlePolls, time.Millisecond))
		defer poll.Stop()
		var last uint64
		for since := time.Now(); time.Since(since) < idle; {
			select {
			case <-g.ctx.Done():
				return
			case <-poll.C:
			}
			// If the time cannot be read, nothing says that the command hangs.
			if used, err := processorTime(cmd.Process.Pid); err != nil || used != last {
				last, since = used, time.Now()
			}
		}
		g.stop(errHangs)
	}()
}

// end frees what the guard holds, and notes whether the program hung.
func (g *guard) end() {
	g.commands.noteHung(g.path, errors.Is(context.Cause(g.ctx), errHangs))
	g.stop(nil)
	g.cancel()
	<-g.watched
}

// stopped returns an error if the guard stopped the command, or the caller did.
func (g *guard) stopped() error {
	if g.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%s stopped: %w", g.path, context.Cause(g.ctx))
}

// idle returns how long a program may use no processor time. One that hung at its last
// run gets less, as it is tried while the other family waits. Legacy waits for the
// xtables lock in addition.
func (c *Commands) idle(path string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := c.Idle
	if c.hung[path] {
		idle /= idleShare
	}
	if c.Variant == Legacy {
		idle += time.Duration(c.lockWait) * time.Second
	}
	return idle
}

// noteHung notes whether a program's last run hung.
func (c *Commands) noteHung(path string, hung bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung == nil {
		c.hung = map[string]bool{}
	}
	c.hung[path] = hung
}

// Fields of /proc/PID/stat behind the program's name, in parentheses: processor time of
// the process, and of its children that have ended, each in user mode and in the kernel.
const (
	statFirst = 11
	statLast  = 14
)

// processorTime returns the processor time that a process has used, with its children,
// in ticks.
func processorTime(pid int) (uint64, error) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= statLast {
		return 0, fmt.Errorf("%sstat has too few fields: %s", proc, stat)
	}
	var sum uint64
	for _, field := range fields[statFirst : statLast+1] {
		ticks, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%sstat: %w", proc, err)
		}
		sum += ticks
	}
	children, _ := os.ReadFile(proc + fmt.Sprintf("task/%d/children", pid)) // some kernels do not have it
	for _, child := range bytes.Fields(children) {
		if pid, err := strconv.Atoi(string(child)); err == nil {
			ticks, _ := processorTime(pid) // it may have ended
			sum += ticks
		}
	}
	return sum, nil
}

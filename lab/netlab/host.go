package netlab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a node, a pod or an outside client.
type Host struct {
	Name      string
	Namespace string       // name of its network namespace, under /run/netns
	Addrs     []netip.Addr // IPv4, then IPv6
	Cgroup    string       // path of the cgroup v2 of its processes; "": there is none

	ns      netns.NsHandle
	link    *netlink.Handle
	log     *slog.Logger
	process *Process

	mu    sync.Mutex
	roles []*Process // all that StartRole started
}

// Addr is the host's address of IP version 4 or 6.
func (h *Host) Addr(version int) netip.Addr {
	if version == 6 {
		return h.Addrs[1]
	}
	return h.Addrs[0]
}

// Do runs f on an OS thread that is in the host's network namespace. What f
// starts on other goroutines is not there.
func (h *Host) Do(f func() error) error { return onThread(h.ns, f) }

// Start starts a command in the host's network namespace and cgroup.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if h.Cgroup != "" {
		f, err := openCgroup(h.Cgroup)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	if err := h.Do(cmd.Start); err != nil {
		return fmt.Errorf("starting %s on %s: %w", cmd.Path, h.Name, err)
	}
	return nil
}

// Run runs a command on the host and gives what it wrote, both streams. A
// command that fails is an error with that text.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out safeBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("running %s on %s: %w: %s", name, h.Name, err, out.String())
	}
	return out.String(), nil
}

// startProcess starts the process that serves and dials on this host.
func (h *Host) startProcess() error {
	p, err := h.StartRole(hostRole, nil)
	if err != nil {
		return err
	}
	h.process = p
	return nil
}

// begin tells the host's process who it is.
func (h *Host) begin() error {
	return h.process.Call("Host.Begin", HostIdentity{Name: h.Name, Addrs: h.Addrs}, &struct{}{})
}

// stopProcesses ends what StartRole started.
func (h *Host) stopProcesses() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.roles {
		p.Stop(Patient(stopTime))
	}
	h.roles = nil
}

// Process is this binary, executed again on a host in another role (see Main).
type Process struct {
	Cmd    *exec.Cmd
	Output *safeBuffer // what it wrote to stdout and stderr
	client *rpc.Client
	exited chan struct{}
	once   sync.Once
}

// StartRole starts this binary on the host in one of the roles given to Main.
// env is added to the environment. The process ends with the lab.
func (h *Host) StartRole(role string, env []string) (*Process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finding this program: %w", err), ours.Close())
	}
	p := &Process{Cmd: exec.Command(self), Output: &safeBuffer{}, exited: make(chan struct{})}
	p.Cmd.Env = append(append(os.Environ(), env...), roleVariable+"="+role)
	p.Cmd.ExtraFiles = []*os.File{theirs}
	p.Cmd.Stdout, p.Cmd.Stderr = p.Output, p.Output
	// A process group of its own: Ctrl-C is for the parent, which ends its hosts.
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.Start(p.Cmd); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	go func() {
		_ = p.Cmd.Wait() // its state is in Cmd.ProcessState
		close(p.exited)
	}()
	p.client = rpc.NewClient(ours)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roles = append(h.roles, p)
	return p, nil
}

// Call calls a method of the role's RPC service.
func (p *Process) Call(method string, args, reply any) error {
	if err := p.client.Call(method, args, reply); err != nil {
		if errors.Is(err, rpc.ErrShutdown) || errors.Is(err, unix.EPIPE) {
			return fmt.Errorf("calling %s: the process has ended: %w; it wrote: %s", method, err, p.Output.String())
		}
		return fmt.Errorf("calling %s: %w", method, err)
	}
	return nil
}

// Stop ends the process: its connection closes, and what has not ended then
// within the time given is killed.
func (p *Process) Stop(patience time.Duration) {
	p.once.Do(func() { _ = p.client.Close() })
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.Kill()
	}
}

// Kill ends the process with SIGKILL and waits until it is gone. What it
// started lives on unless it is in the process's group.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.exited
	p.once.Do(func() { _ = p.client.Close() })
}

// KillGroup is Kill for the process and all that it started.
func (p *Process) KillGroup() {
	select {
	case <-p.exited: // its number may be another's now
	default:
		_ = unix.Kill(-p.Cmd.Process.Pid, unix.SIGKILL)
	}
	p.Kill()
}

// GroupGone waits until the process and all that it started have ended, and
// tells whether they do within the time given.
func (p *Process) GroupGone(patience time.Duration) bool {
	<-p.exited
	for end := time.Now().Add(patience); groupRuns(p.Cmd.Process.Pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// groupRuns tells whether a process of a group still runs. One that has ended
// may stay for seconds, until init takes note of it.
func groupRuns(group int) bool {
	if errors.Is(unix.Kill(-group, 0), unix.ESRCH) {
		return false
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(all, func(p procfs.Proc) bool {
		stat, err := p.Stat() // an error: it is gone
		return err == nil && stat.PGRP == group && stat.State != "Z" && stat.State != "X"
	})
}

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// socketPair is a two-way pipe; the second end is for a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "lab")
	theirs := os.NewFile(uintptr(fds[1]), "lab")
	ours, err := net.FileConn(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("using a socket pair: %w", err), f.Close(), theirs.Close())
	}
	_ = f.Close() // FileConn has its own copy
	return ours, theirs, nil
}

// safeBuffer keeps the last part of what several goroutines write.
type safeBuffer struct {
	mu  sync.Mutex
	buf []byte
}

// mostOutput bounds what is kept of a process's output.
const mostOutput = 1 << 20

// Write implements io.Writer.
func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if len(b.buf) > mostOutput {
		b.buf = append([]byte(nil), b.buf[len(b.buf)-mostOutput/2:]...)
	}
	return len(p), nil
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}

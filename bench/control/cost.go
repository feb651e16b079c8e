package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
)

// restarts is how often a restart of the API server is tried.
const restarts = 3

// Cost is what the API server has taken so far.
type Cost struct {
	CPU            time.Duration
	Sent, Received uint64  // bytes on the links to those who are connected, all headers included
	Resident, Peak float64 // bytes of memory
}

// Cost reads what the API server has taken since it was started. Sent and Received
// go on over a restart.
func (p *Plane) Cost() (Cost, error) {
	var c Cost
	for i := range p.links {
		var link netlink.Link
		err := p.host().Do(func() (err error) {
			link, err = netlink.LinkByName(linkName(i + 1))
			return err
		})
		if err != nil {
			return c, fmt.Errorf("counting what the API server sent: %w", err)
		}
		c.Sent += link.Attrs().Statistics.TxBytes
		c.Received += link.Attrs().Statistics.RxBytes
	}
	used, err := Used(p.apiServer().Cmd.Process.Pid)
	c.CPU, c.Resident, c.Peak = used.CPU, used.Resident, used.Peak
	return c, err
}

// Process is what a process has taken so far.
type Process struct {
	CPU            time.Duration
	Children       time.Duration // CPU of those that it started and that have ended
	Resident, Peak float64       // bytes of memory
}

// Used reads what a process has taken.
func Used(pid int) (Process, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return Process{}, fmt.Errorf("reading what process %d takes: %w", pid, err)
	}
	return used(fs, pid)
}

func used(fs procfs.FS, pid int) (Process, error) {
	proc, err := fs.Proc(pid)
	if err != nil {
		return Process{}, fmt.Errorf("reading what process %d takes: %w", pid, err)
	}
	stat, statErr := proc.Stat()
	status, statusErr := proc.NewStatus()
	if err := errors.Join(statErr, statusErr); err != nil {
		return Process{}, fmt.Errorf("reading what process %d takes: %w", pid, err)
	}
	const tick = 10 * time.Millisecond
	return Process{
		CPU: time.Duration(stat.UTime+stat.STime) * tick, Children: time.Duration(stat.CUTime+stat.CSTime) * tick,
		Resident: float64(status.VmRSS), Peak: float64(status.VmHWM),
	}, nil
}

// Restart kills the API server, and starts it again. It returns when the API
// server is ready. One that has too little of the processor to start in time ends
// by itself, and is started again as a kubelet would.
func (p *Plane) Restart(ctx context.Context) (err error) {
	for range restarts {
		p.apiServer().Stop(0)
		p.programs = p.programs[:len(p.programs)-1]
		if err := p.serve(); err != nil {
			return fmt.Errorf("starting the API server again: %w", err)
		}
		if err = p.ready(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// apiServer is the program that was started last.
func (p *Plane) apiServer() program { return p.programs[len(p.programs)-1] }

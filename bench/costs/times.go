package costs

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// So many sockets ask for an address, to time the hook that they pass. The fastest
// batch counts: whatever interrupts a program only adds.
const (
	batches = 40
	asks    = 500 // in each
)

// Timed is how long one hook took in the fastest batch, and how long a program took
// at the same hook that does nothing.
type Timed struct {
	Hook, To          string
	Nanoseconds, Idle float64
}

// asker makes sockets pass a hook.
type asker struct {
	hook string
	at   ebpf.AttachType
	ask  func(to netip.AddrPort) error
}

func askers() []asker {
	return []asker{
		{"sock_connect4", ebpf.AttachCGroupInet4Connect, connectTCP},
		{"sock_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, sendUDP},
	}
}

// hookTimes measures each hook, to an address of a Service and to one of nobody.
func hookTimes(pinDir, cgroup string, tcp netip.AddrPort) (out []Timed, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("having the kernel time BPF programs: %w", err)
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	hooks, err := linked(pinDir)
	if err != nil {
		return nil, err
	}
	for _, a := range askers() {
		service := tcp
		if a.hook == "sock_sendmsg4" {
			service = netip.MustParseAddrPort(lostAddr)
		}
		for _, to := range []struct {
			name string
			addr netip.AddrPort
		}{{"a Service", service}, {"nobody's address", netip.AddrPortFrom(netip.MustParseAddr(nobody), 80)}} {
			t, err := a.time(hooks[a.hook], cgroup, to.addr)
			if err != nil {
				return nil, fmt.Errorf("timing %s: %w", a.hook, err)
			}
			t.To = to.name
			out = append(out, t)
		}
	}
	return out, nil
}

// time makes sockets pass a hook, which also runs a program that does nothing.
func (a asker) time(id ebpf.ProgramID, cgroup string, to netip.AddrPort) (t Timed, err error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return t, err
	}
	defer func() { _ = program.Close() }()
	idle, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: a.at, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		return t, fmt.Errorf("loading a program that does nothing: %w", err)
	}
	defer func() { _ = idle.Close() }()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: a.at, Program: idle})
	if err != nil {
		return t, fmt.Errorf("attaching a program that does nothing: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	t.Hook = a.hook
	for i := range batches {
		each, err := a.batch(to, program, idle)
		if err != nil {
			return t, err
		}
		if i == 0 {
			t.Nanoseconds, t.Idle = each[0], each[1]
		}
		t.Nanoseconds, t.Idle = min(t.Nanoseconds, each[0]), min(t.Idle, each[1])
	}
	return t, nil
}

// batch returns how long each program took on average.
func (a asker) batch(to netip.AddrPort, programs ...*ebpf.Program) ([]float64, error) {
	before, err := runs(programs)
	if err != nil {
		return nil, err
	}
	for range asks {
		if err := a.ask(to); err != nil {
			return nil, fmt.Errorf("asking for %s: %w", to, err)
		}
	}
	after, err := runs(programs)
	if err != nil {
		return nil, err
	}
	var each []float64
	for i := range programs {
		if n := after[i].RunCount - before[i].RunCount; n != asks {
			return nil, fmt.Errorf("%d sockets asked for %s and the hook ran %d times", asks, to, n)
		}
		each = append(each, float64((after[i].Runtime-before[i].Runtime).Nanoseconds())/asks)
	}
	return each, nil
}

// runs asks the kernel how often programs ran, and for how long.
func runs(programs []*ebpf.Program) ([]*ebpf.ProgramStats, error) {
	var out []*ebpf.ProgramStats
	for _, p := range programs {
		s, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("asking for the times of a BPF program: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}

// connectTCP connects to where no packet gets: the route there throws it away.
func connectTCP(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return thrownAway(unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}))
}

// sendUDP sends one datagram to where no packet gets.
func sendUDP(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return thrownAway(unix.Sendto(fd, []byte{1}, 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}))
}

// thrownAway expects the error of a route that throws packets away.
func thrownAway(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err == nil {
		return errors.New("the packet went out")
	}
	return err
}

// times prints how long the hooks take. It gates nothing: the same build differs
// by more than what is tolerated from one run to another.
func (c *counted) times() error {
	if c.name != nameEBPF {
		return nil
	}
	var all []Timed
	if err := c.agent.Call("Costs.Times", struct{}{}, &all); err != nil {
		return err
	}
	for _, t := range all {
		c.add(Cost{What: t.Hook + " to " + t.To, Unit: "ns", Value: t.Nanoseconds, Ungated: true},
			Cost{What: t.Hook + " to " + t.To + ", beside a program that does nothing", Unit: "times", Value: t.Nanoseconds / t.Idle, Ungated: true})
	}
	return nil
}

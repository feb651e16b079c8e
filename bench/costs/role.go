package costs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// roleName is the role of the process on the node that is counted in.
const roleName = "costs"

// Roles are what the program's main function gives to netlab.Main.
func Roles() map[string]netlab.Role {
	return map[string]netlab.Role{roleName: func() map[string]any { return map[string]any{"Costs": &agent{}} }}
}

// The backends that are counted.
const (
	nameNFTables = "nftables"
	nameIPTables = "iptables"
	nameEBPF     = "ebpf"
)

func backends() []string { return []string{nameNFTables, nameIPTables, nameEBPF} }

// agent is the RPC service of a process that holds one backend, or the watcher. It
// lives for one backend and one number of Services.
type agent struct {
	backend  dataplane.Backend
	driver   dataplane.Driver
	cfg      dataplane.Config
	held     *dataplane.Snapshot // what the kernel holds
	back     *dataplane.Snapshot // what takes the last change back
	pinDir   string
	cgroup   string
	services int
}

// OpenArgs say what backend to open, where, and with what.
type OpenArgs struct {
	Backend, PinDir, CgroupRoot, LockDir string
	Services                             int
	World                                world
}

// Filled is what a first Sync left in memory, in bytes.
type Filled struct {
	Heap    int64 // of this process
	Maps    int64 // of BPF maps that this process holds
	Listed  int   // endpoints in the Snapshot
	Problem string
}

// Open opens a backend and makes the kernel hold all Services. A backend that does
// not work on this machine is a Problem.
func (a *agent) Open(args OpenArgs, f *Filled) error {
	o := catalog.DefaultOptions()
	o.EBPF.PinDir, o.EBPF.CgroupRoot, o.EBPF.SocketLB = args.PinDir, args.CgroupRoot, catalog.SocketLBOff
	if args.Backend == nameEBPF {
		o.EBPF.SocketLB = catalog.DefaultOptions().EBPF.SocketLB
	}
	o.IPTables.Mode, o.IPTables.LockDir = "nft", args.LockDir
	drivers := catalog.Drivers(o)
	at := slices.IndexFunc(drivers, func(d dataplane.Driver) bool { return d.Name == args.Backend })
	if at < 0 {
		return fmt.Errorf("there is no backend %q", args.Backend)
	}
	a.driver, a.services, a.pinDir, a.cgroup = drivers[at], args.Services, args.PinDir, args.CgroupRoot
	a.cfg = dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4}, MasqueradeBit: 14}
	want := args.World.snapshot(args.Services)
	var err error
	if a.backend, err = a.driver.Open(context.Background(), a.cfg); errors.Is(err, dataplane.ErrUnsupported) {
		f.Problem = err.Error()
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the backend: %w", err)
	}
	for p := range want.Ports.All() {
		f.Listed += len(p.Frontends[0].Pool.Endpoints)
	}
	heap, maps, err := a.memory()
	if err != nil {
		return err
	}
	if err := a.sync(nil, want); err != nil {
		return err
	}
	heapAfter, mapsAfter, err := a.memory()
	f.Heap, f.Maps = heapAfter-heap, mapsAfter-maps
	return err
}

func (a *agent) sync(prev, want *dataplane.Snapshot) error {
	if err := a.backend.Sync(context.Background(), prev, want); err != nil {
		return fmt.Errorf("syncing %d Services: %w", want.Ports.Len(), err)
	}
	a.held = want
	return nil
}

// Change makes one change. Back must follow.
func (a *agent) Change(c Change, _ *struct{}) error {
	next, back := c.apply(a.held, a.services)
	a.back = back
	return a.sync(a.held, next)
}

// Back takes the last change back.
func (a *agent) Back(struct{}, *struct{}) error { return a.sync(a.held, a.back) }

// Allocations counts what one change allocates, from a Snapshot to the kernel.
func (a *agent) Allocations(c Change, out *Allocated) (err error) {
	var next *dataplane.Snapshot
	*out, err = typical(func() error { next, a.back = c.apply(a.held, a.services); return nil },
		func() error { return a.sync(a.held, next) },
		func() error { return a.sync(a.held, a.back) })
	return err
}

// Programs counts the instructions of the BPF programs that this process holds.
func (a *agent) Programs(_ struct{}, out *[]Program) (err error) {
	*out, err = programs(a.pinDir)
	return err
}

// Times measures how long the hooks of sockets take.
func (a *agent) Times(_ struct{}, out *[]Timed) (err error) {
	*out, err = hookTimes(a.pinDir, a.cgroup, clusterIP(a.services/2))
	return err
}

// Close removes what the backend put into the kernel.
func (a *agent) Close(_ struct{}, _ *struct{}) error {
	if a.backend == nil {
		return nil
	}
	return errors.Join(a.backend.Close(), a.driver.Cleanup(context.Background(), a.cfg))
}

// backend counts what one backend costs with so many Services.
func (b *bench) backend(ctx context.Context, name string, services int) (err error) {
	lockDir, err := os.MkdirTemp("", "switchyard-costs-")
	if err != nil {
		return fmt.Errorf("making a directory for the lock: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(lockDir)) }()
	p, err := b.node.StartRole(roleName, []string{"GOMAXPROCS=1"})
	if err != nil {
		return err
	}
	defer p.Stop(netlab.Patient(stopTime))
	var f Filled
	args := OpenArgs{Backend: name, PinDir: b.node.PinDir, CgroupRoot: b.node.CgroupRoot, LockDir: lockDir, Services: services,
		World: world{Node: b.node.Addr(4), Pods: b.node.PodCIDRs[0], Asked: b.node.Pods[1].Addr(4)}}
	if err := p.Call("Costs.Open", args, &f); err != nil {
		return err
	}
	if f.Problem != "" {
		b.set.Without = append(b.set.Without, name+": "+f.Problem)
		return nil
	}
	c := &counted{bench: b, ctx: ctx, agent: p, name: name, services: services, filled: f}
	for _, measure := range []func() error{c.memory, c.allocations, c.calls, c.rules, c.programs, c.times} {
		if err := measure(); err != nil {
			return err
		}
	}
	return p.Call("Costs.Close", struct{}{}, &struct{}{})
}

// counted is one backend with so many Services, while it is counted.
type counted struct {
	*bench
	ctx      context.Context
	agent    *netlab.Process
	name     string
	services int
	filled   Filled
}

func (c *counted) add(costs ...Cost) { c.bench.add(c.name, c.services, costs...) }

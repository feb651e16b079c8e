package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// SocketLB says whose sockets are translated.
type SocketLB string

// The modes of socket load balancing.
const (
	Auto SocketLB = "auto" // all, but for pods that translate their own outgoing connections
	All  SocketLB = "all"  // the node's and its pods', TCP and UDP
	TCP  SocketLB = "tcp"  // theirs, TCP only
	Node SocketLB = "node" // those of the node's own network namespace
	Off  SocketLB = "off"  // nobody's
)

// SocketLBs are the modes that there are.
func SocketLBs() []string {
	return []string{string(Auto), string(All), string(TCP), string(Node), string(Off)}
}

// Options is what only the accelerator is told. A size of 0 means its default.
type Options struct {
	// SocketLB is whose sockets are translated; "": Auto.
	SocketLB SocketLB
	// CgroupRoot is the cgroup v2 directory whose processes' sockets are
	// translated; "": where cgroup v2 is mounted.
	CgroupRoot string
	// PinDir is a directory on a bpf file system, of this agent alone. Default
	// /sys/fs/bpf/switchyard.
	PinDir       string
	MaxFrontends int // addresses and ports of Services; default 65,536
	MaxEndpoints int // of all Service ports together, once for each pool; default 262,144
	MaxAffinity  int // clients with session affinity, and UDP flows of sockets; default 65,536

	// noCookies, in tests, is a kernel before 5.14, which does not tell cookies of
	// network namespaces.
	noCookies bool
}

// DefaultOptions are those of an agent that is told nothing.
func DefaultOptions() Options {
	return Options{SocketLB: Auto, PinDir: "/sys/fs/bpf/switchyard", MaxFrontends: 65536, MaxEndpoints: 262144, MaxAffinity: 65536}
}

// withDefaults fills in what is not told.
func (o Options) withDefaults() Options {
	d := DefaultOptions()
	o.SocketLB = cmp.Or(o.SocketLB, d.SocketLB)
	o.PinDir = cmp.Or(o.PinDir, d.PinDir)
	o.MaxFrontends = cmp.Or(o.MaxFrontends, d.MaxFrontends)
	o.MaxEndpoints = cmp.Or(o.MaxEndpoints, d.MaxEndpoints)
	o.MaxAffinity = cmp.Or(o.MaxAffinity, d.MaxAffinity)
	return o
}

// MaxSize is the most that a size can be: four times as much fits a map.
const MaxSize = 1 << 27

func (o Options) check() error {
	if !slices.Contains(SocketLBs(), string(o.SocketLB)) {
		return fmt.Errorf("socket load balancing %q: it can be %s", o.SocketLB, strings.Join(SocketLBs(), ", "))
	}
	for _, n := range []int{o.MaxFrontends, o.MaxEndpoints, o.MaxAffinity} {
		if n < 1 || n > MaxSize {
			return fmt.Errorf("a map of %d elements: sizes are from 1 to %d", n, MaxSize)
		}
	}
	return nil
}

// forPrograms returns the options of the programs.
func (o Options) forPrograms() programs.Options {
	return programs.Options{
		CgroupRoot: o.CgroupRoot, PinDir: o.PinDir, NoCookies: o.noCookies,
		MaxFrontends: o.MaxFrontends, MaxEndpoints: o.MaxEndpoints, MaxAffinity: o.MaxAffinity,
	}
}

// checkHere reports what is wrong with the options, or with the directory of pins.
func checkHere(o Options, cfg dataplane.Config) error {
	if err := programs.CheckBPFFS(o.PinDir); err != nil {
		return err
	}
	if len(cfg.Families) == 0 {
		return errors.New("no address family to program")
	}
	return o.check()
}

// probe loads all programs on small maps and pins nothing.
func probe(o Options, cfg dataplane.Config) error {
	if err := checkHere(o, cfg); err != nil {
		return err
	}
	return programs.Probe(o.forPrograms(), cfg.Log)
}

// openSockets loads the programs on the pinned maps. What forwards now goes on
// with its own programs until the first Sync. If it fails, nothing new is pinned.
func openSockets(o Options, cfg dataplane.Config) (_ *sockets, err error) {
	if err := checkHere(o, cfg); err != nil {
		return nil, err
	}
	p, err := programs.Open(o.forPrograms(), cfg.Log)
	if err != nil {
		return nil, err
	}
	b := &sockets{opts: o, cfg: cfg, programs: p}
	b.setMode(p.Netns != 0)
	b.maps = &tables{
		frontends: p.Maps[programs.SockMapFrontends], services: p.Maps[programs.SockMapServices], slots: p.Maps[programs.SockMapSlots],
		addresses: p.Maps[programs.SockMapNodeAddresses], settings: p.Maps[programs.SockMapSettings],
	}
	b.held.node.addresses.kernel = b.maps.addresses
	if b.ender, err = startEnder(p.Maps[programs.SockMapPeers], p.Maps[programs.SockMapConnected], p.CgroupRoot, cfg.Log); err == nil {
		err = p.Pin()
	}
	if err != nil {
		return nil, errors.Join(programs.Judged(err), b.close())
	}
	return b, nil
}

// setMode makes flags of the mode. Kernels before 5.14 tell nobody the cookie of
// a network namespace: there pods cannot be looked into.
func (b *sockets) setMode(cookies bool) {
	switch b.opts.SocketLB {
	case TCP:
		b.modeFlags = programs.SockFlagTCP_ONLY
	case Node:
		b.modeFlags = programs.SockFlagNODE_ONLY
	case Auto:
		b.modeFlags = programs.SockFlagASK_NAMESPACES
		if !cookies {
			b.modeFlags = programs.SockFlagNODE_ONLY
			b.reason = "the kernel is older than 5.14 and does not tell the agent which network namespace a pod has, so --socket-lb=auto works as node"
			b.cfg.Log.Warn("sockets of pods are left to packets", "reason", b.reason)
		}
	}
}

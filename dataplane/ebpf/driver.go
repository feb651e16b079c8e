package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/pods"
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

// sockets is the translation of sockets: maps, and programs at the hooks of a
// cgroup. Its calls come from one goroutine at a time, but for observe, Counts and
// Status.
type sockets struct {
	mu        sync.Mutex // held by each half of a Sync, and by observe to compare
	opts      Options
	cfg       dataplane.Config
	base      string // name of the packet backend
	dirs      dirs
	modeFlags uint32 // of settings

	all      map[string]*ebpf.Map // every map, by name
	maps     *tables              // those that Sync writes
	toPin    []string             // maps that are not pinned, where nothing is in their place
	toAdopt  map[string]*ebpf.Map // older maps that ours are to be pinned in place of
	programs *ebpf.Collection
	ender    *ender
	older    *older
	cgroupID uint64
	netns    uint64        // cookie of the node's network namespace; 0: the machine's first one
	pods     *pods.Watcher // nil: nobody's namespace is asked for
	attached bool          // by this process
	closed   bool

	reading  func()                       // in tests, called while the maps are read; nil: nothing
	told     atomic.Pointer[told]         // after the last Sync
	watching atomic.Pointer[pods.Watcher] // pods, for other goroutines
	reason   string                       // why the mode means less than it says; "": it does not
	narrow   string                       // why fewer processes than the machine's are below the cgroup; "": not known to be so

	// What the kernel holds; records is nil where that is unknown.
	records map[dataplane.PortID]*record
	// finished is the Snapshot of the last Sync that succeeded; nil: there was none.
	finished *dataplane.Snapshot
	node     nodeState
	used     usage
	nextID   uint32
	bound    bound                       // addresses of the node itself
	aside    map[dataplane.PortID]string // what is left to the packet backend, and why
	asides   map[string]int              // how many are in aside, by reason
}

// told is what other goroutines may ask for.
type told struct {
	used  usage
	aside map[string]int // ServicePorts left to the packet backend, by reason
}

func (b *sockets) tell() {
	b.told.Store(&told{used: b.used, aside: maps.Clone(b.asides)})
}

// setAside notes why a ServicePort is left to the packet backend; "": it is not.
func (b *sockets) setAside(id dataplane.PortID, why string) {
	if old := b.aside[id]; old != "" {
		delete(b.aside, id)
		if b.asides[old]--; b.asides[old] == 0 {
			delete(b.asides, old)
		}
	}
	if why != "" {
		b.aside[id] = why
		b.asides[why]++
	}
}

// probe loads all programs on small maps and pins nothing.
func probe(o Options, cfg dataplane.Config) error {
	if err := checkBPFFS(o.PinDir); err != nil {
		return err
	}
	b, err := prepare(o, cfg)
	if err != nil {
		return err
	}
	spec, err := b.spec()
	if err == nil {
		for _, m := range spec.Maps {
			m.MaxEntries = min(m.MaxEntries, 64)
		}
		var c *ebpf.Collection
		if c, err = b.load(spec); err == nil {
			c.Close()
		}
	}
	return errors.Join(judged(err), b.close())
}

// judged marks an error that says what this machine cannot do.
func judged(err error) error {
	switch {
	case errors.Is(err, dataplane.ErrUnsupported): // it says why already
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, ebpf.ErrNotSupported):
		err = fmt.Errorf("%w: %w", err, dataplane.ErrUnsupported)
	}
	return err
}

// prepare checks the options and finds the cgroup.
func prepare(o Options, cfg dataplane.Config) (*sockets, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	b := &sockets{
		opts: o, cfg: cfg, dirs: makeDirs(o.PinDir), older: &older{},
		all: map[string]*ebpf.Map{}, toAdopt: map[string]*ebpf.Map{}, aside: map[dataplane.PortID]string{}, asides: map[string]int{},
	}
	var err error
	if b.opts.CgroupRoot, err = cgroupRoot(o.CgroupRoot); err != nil {
		return nil, err
	}
	if o.CgroupRoot == "" {
		b.narrow = narrowCgroup(b.opts.CgroupRoot)
	}
	b.cgroupID, err = cgroupID(b.opts.CgroupRoot)
	return b, err
}

// spec is the programs to load, with their constants and the sizes of their maps
// set.
func (b *sockets) spec() (*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	if b.netns, err = netnsCookie(); err != nil {
		return nil, err
	}
	if b.opts.noCookies {
		b.netns = 0
	}
	b.setMode(b.netns != 0)
	if b.narrow != "" {
		b.cfg.Log.Warn("sockets of other cgroups are left to packets", "reason", b.narrow)
	}
	s, err := loadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the socket programs: %w", err)
	}
	setSizes(s.Maps, b.opts)
	return s, setVariable(s, "host_netns_cookie", b.netns)
}

// setMode makes flags of the mode. Kernels before 5.14 tell nobody the cookie of
// a network namespace: there pods cannot be looked into.
func (b *sockets) setMode(cookies bool) {
	switch b.opts.SocketLB {
	case TCP:
		b.modeFlags = tcpOnly
	case Node:
		b.modeFlags = nodeOnly
	case Auto:
		b.modeFlags = askNamespaces
		if !cookies {
			b.modeFlags = nodeOnly
			b.reason = "the kernel is older than 5.14 and does not tell the agent which network namespace a pod has, so --socket-lb=auto works as node"
			b.cfg.Log.Warn("sockets of pods are left to packets", "reason", b.reason)
		}
	}
}

// openSockets loads the programs on the pinned maps. What forwards now goes on
// with its own programs until the first Sync. If it fails, nothing new is pinned.
func openSockets(o Options, cfg dataplane.Config) (_ *sockets, err error) {
	if err := checkBPFFS(o.PinDir); err != nil {
		return nil, err
	}
	b, err := prepare(o, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(judged(err), b.close())
		}
	}()
	spec, err := b.spec()
	if err != nil {
		return nil, err
	}
	if b.older, err = findOlder(b.dirs, o.PinDir, cfg.Log); err != nil {
		return nil, err
	}
	if err := b.openMaps(ownMaps(spec)); err != nil {
		return nil, err
	}
	b.maps = &tables{
		frontends: b.all[sockMapFrontends], services: b.all[sockMapServices], slots: b.all[sockMapSlots],
		addresses: b.all[sockMapNodeAddresses], settings: b.all[sockMapSettings],
	}
	b.node.addresses.kernel = b.maps.addresses
	if b.programs, err = b.load(spec); err != nil {
		return nil, fmt.Errorf("loading the socket programs: %w", err)
	}
	if b.ender, err = startEnder(b.all[sockMapPeers], b.all[sockMapConnected], b.opts.CgroupRoot, cfg.Log); err != nil {
		return nil, err
	}
	return b, b.pinMaps()
}

// close frees what the process holds. Pins hold what translates. A second call
// does nothing.
func (b *sockets) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	var errs []error
	if b.pods != nil {
		b.pods.Close()
	}
	if b.ender != nil {
		errs = append(errs, b.ender.close())
	}
	if b.older.stop != nil {
		b.older.close()
	}
	if b.programs != nil {
		b.programs.Close()
	}
	for _, m := range b.all {
		errs = append(errs, m.Close())
	}
	for _, m := range b.toAdopt {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

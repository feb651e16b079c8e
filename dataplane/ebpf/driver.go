package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/packet"
)

// Options is what only this backend is told. A size of 0 means its default.
type Options struct {
	// SocketLB translates sockets as they connect or send; without it every
	// packet is.
	SocketLB bool
	// HoldPodSockets, while it is true, leaves the sockets of pods to the packet
	// path. A Sync(nil, w) after it became false ends that. nil: never.
	HoldPodSockets *atomic.Bool
	// CgroupRoot is the cgroup v2 directory whose processes' sockets are
	// translated; "": where cgroup v2 is mounted.
	CgroupRoot string
	// PinDir is a directory on a bpf file system, of this agent alone. Default
	// /sys/fs/bpf/switchyard.
	PinDir          string
	MaxFrontends    int // addresses and ports of Services; default 65,536
	MaxEndpoints    int // of all Service ports together, once for each pool; default 262,144
	MaxSourceRanges int // default 65,536
	MaxAffinity     int // clients with session affinity, and UDP flows of sockets; default 65,536
	MaxConnections  int // of the packet path; default 262,144
}

// DefaultOptions are those of an agent that is told nothing.
func DefaultOptions() Options {
	return Options{
		SocketLB: true, PinDir: "/sys/fs/bpf/switchyard",
		MaxFrontends: 65536, MaxEndpoints: 262144, MaxSourceRanges: 65536, MaxAffinity: 65536, MaxConnections: 262144,
	}
}

// withDefaults fills in what is not told.
func (o Options) withDefaults() Options {
	d := DefaultOptions()
	o.PinDir = cmp.Or(o.PinDir, d.PinDir)
	o.MaxFrontends = cmp.Or(o.MaxFrontends, d.MaxFrontends)
	o.MaxEndpoints = cmp.Or(o.MaxEndpoints, d.MaxEndpoints)
	o.MaxSourceRanges = cmp.Or(o.MaxSourceRanges, d.MaxSourceRanges)
	o.MaxAffinity = cmp.Or(o.MaxAffinity, d.MaxAffinity)
	o.MaxConnections = cmp.Or(o.MaxConnections, d.MaxConnections)
	return o
}

// MaxSize is the most that a size can be: four times as much fits a map.
const MaxSize = 1 << 27

func (o Options) check() error {
	for _, n := range []int{o.MaxFrontends, o.MaxEndpoints, o.MaxSourceRanges, o.MaxAffinity, o.MaxConnections} {
		if n < 1 || n > MaxSize {
			return fmt.Errorf("a map of %d elements: sizes are from 1 to %d", n, MaxSize)
		}
	}
	return nil
}

// Driver opens the backend. It programs the network namespace of this process
// and the sockets of a cgroup.
func Driver(o Options) dataplane.Driver {
	o = o.withDefaults()
	return dataplane.Driver{
		Name: "ebpf", OpenProbes: true,
		Probe: func(_ context.Context, cfg dataplane.Config) error { return probe(o, cfg) },
		Open: func(_ context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
			return open(o, cfg)
		},
		Cleanup: func(context.Context, dataplane.Config) error { return cleanup(o) },
		Retire: func(ctx context.Context, cfg dataplane.Config, node *dataplane.Node) error {
			return retire(ctx, o, cfg, node)
		},
	}
}

// backend implements dataplane.Backend.
type backend struct {
	opts Options
	cfg  dataplane.Config
	dirs dirs

	all      map[string]*ebpf.Map // every map, by name
	maps     *tables              // those that Sync writes
	toPin    []string             // maps that are not pinned, where nothing is in their place
	toAdopt  map[string]*ebpf.Map // older maps that ours are to be pinned in place of
	sock     *ebpf.Collection     // nil: no socket hooks
	packets  *ebpf.Collection
	bareSpec *ebpf.CollectionSpec // the packet programs for devices without a link layer header
	bare     *ebpf.Collection     // nil: no such device was met
	ender    *ender               // nil: no socket hooks
	cgroupID uint64
	path     *packet.Path                // nil: this process has attached nothing yet
	pathNode *dataplane.Node             // what path knows
	flows    atomic.Pointer[packet.Path] // path, for Flows
	closed   bool

	// For Counts, which other goroutines call.
	told        atomic.Pointer[usage] // used, after the last Sync
	connections atomic.Int64
	// retired: no Service is wanted, so that no connection begins.
	retired atomic.Bool

	// What the kernel holds; records is nil where that is unknown.
	records map[dataplane.PortID]*record
	node    nodeState
	used    usage
	nextID  uint32
	marks   map[sockAddr]int      // ServicePorts at each ClusterIP
	marked  map[sockAddr]struct{} // ClusterIPs that are marked in the kernel
	touched map[sockAddr]struct{} // ClusterIPs whose number changed in this Sync
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
	specs, err := b.specs()
	if err == nil {
		for _, s := range specs {
			for _, m := range s.Maps {
				m.MaxEntries = min(m.MaxEntries, 64)
			}
			var c *ebpf.Collection
			if c, err = b.load(s); err != nil {
				break
			}
			c.Close()
		}
	}
	return errors.Join(judged(err), b.Close())
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
func prepare(o Options, cfg dataplane.Config) (*backend, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	b := &backend{opts: o, cfg: cfg, dirs: makeDirs(o.PinDir), all: map[string]*ebpf.Map{}, toAdopt: map[string]*ebpf.Map{}}
	if !o.SocketLB {
		return b, nil
	}
	var err error
	if o.CgroupRoot == "" {
		if b.opts.CgroupRoot, err = findCgroupRoot(); err != nil {
			return nil, err
		}
	}
	if b.cgroupID, err = cgroupID(b.opts.CgroupRoot); err != nil {
		return nil, err
	}
	return b, nil
}

// specs are the programs to load, with their constants and the sizes of their
// maps set.
func (b *backend) specs() (map[string]*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	retval := haveSetRetval()
	sock, err := loadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the socket programs: %w", err)
	}
	packets, err := packet.Spec()
	if err != nil {
		return nil, err
	}
	specs := map[string]*ebpf.CollectionSpec{"packet": packets}
	if b.opts.SocketLB {
		specs["sock"] = sock
	}
	for _, s := range specs {
		setSizes(s.Maps, b.opts)
		if err := errors.Join(setVariable(s, "host_netns_cookie", cookie), setVariable(s, "have_set_retval", boolByte(retval))); err != nil {
			return nil, err
		}
	}
	if b.opts.SocketLB && !retval {
		b.cfg.Log.Info("sockets of Services without endpoints are rejected by packets, not at once", "reason", "the kernel is older than 5.18")
	}
	return specs, nil
}

func boolByte(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// open loads the programs on the pinned maps. What forwards now goes on with
// its own programs until the first Sync. Where it fails nothing new is pinned.
func open(o Options, cfg dataplane.Config) (_ *backend, err error) {
	if err := checkBPFFS(o.PinDir); err != nil {
		return nil, err
	}
	b, err := prepare(o, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(judged(err), b.Close())
		}
	}()
	specs, err := b.specs()
	if err != nil {
		return nil, err
	}
	shared := map[string]*ebpf.MapSpec{}
	for _, s := range specs {
		sharedMaps(s, shared)
	}
	if err := b.openMaps(shared); err != nil {
		return nil, err
	}
	b.maps = &tables{
		frontends: b.all[sockMapFrontends], services: b.all[sockMapServices], slots: b.all[sockMapSlots], sources: b.all[sockMapSources],
		addresses: b.all[sockMapNodeAddresses], podRanges: b.all[sockMapPodRanges],
		serviceRanges: b.all[sockMapServiceRanges], settings: b.all[sockMapSettings],
	}
	b.node.addresses.kernel, b.node.podRanges.kernel, b.node.serviceRanges.kernel = b.maps.addresses, b.maps.podRanges, b.maps.serviceRanges
	b.bareSpec = packet.SplitBare(specs["packet"])
	if b.packets, err = b.load(specs["packet"]); err != nil {
		return nil, fmt.Errorf("loading the packet programs: %w", err)
	}
	if o.SocketLB {
		if b.sock, err = b.load(specs["sock"]); err != nil {
			return nil, fmt.Errorf("loading the socket programs: %w", err)
		}
		if b.ender, err = startEnder(b.all[sockMapPeers], b.opts.CgroupRoot, cfg.Log); err != nil {
			return nil, err
		}
	}
	return b, b.pinMaps()
}

// loadBare loads what Config.LoadBare asks for.
func (b *backend) loadBare() (c *ebpf.Collection, err error) {
	b.bare, err = b.load(b.bareSpec)
	return b.bare, err
}

// Close implements dataplane.Backend. Pins hold what forwards. A second call
// does nothing.
func (b *backend) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	var errs []error
	if b.path != nil {
		errs = append(errs, b.path.Close())
	}
	if b.ender != nil {
		errs = append(errs, b.ender.close())
	}
	for _, c := range []*ebpf.Collection{b.sock, b.packets, b.bare} {
		if c != nil {
			c.Close()
		}
	}
	for _, m := range b.all {
		errs = append(errs, m.Close())
	}
	for _, m := range b.toAdopt {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// cleanup detaches and unpins all that is ours.
func cleanup(o Options) error {
	d := makeDirs(o.PinDir)
	if err := errors.Join(detachSockets(d.links), packet.Cleanup(d.root)); err != nil {
		return err
	}
	for _, dir := range []string{d.maps, d.links, d.root} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking for pins: %w", err)
		}
		for _, e := range entries {
			if err := os.Remove(dir + "/" + e.Name()); err != nil {
				return fmt.Errorf("unpinning %s: %w", e.Name(), err)
			}
		}
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("removing the directory of pins: %w", err)
		}
	}
	if err := os.Remove(o.PinDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing the directory of pins: %w", err)
	}
	return nil
}

// Flows calls visit with each connection that the packet path translates; those
// of sockets are in no table. It may be called at any time before Close.
func (b *backend) Flows(visit func(dataplane.Flow)) error {
	path := b.flows.Load()
	if path == nil { // nothing is attached yet
		return nil
	}
	return path.Flows(visit)
}

package packet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// The names of the programs; "bare" ones are for devices without a link layer header.
const (
	progIn      = "packet_in"
	progOut     = "packet_out"
	progInBare  = "packet_in_bare"
	progOutBare = "packet_out_bare"
)

// The names of the maps that this package reads and writes.
const (
	mapConnections = "connections"
	mapDevices     = "devices"
)

// Spec is the programs and maps of the packet path. Its constants are set as
// this kernel needs them; sizes of maps are the caller's.
func Spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadPacket()
	if err != nil {
		return nil, fmt.Errorf("reading the packet programs: %w", err)
	}
	if err := setChecksumFlag(spec); err != nil {
		return nil, err
	}
	return spec, nil
}

// SplitBare takes from a specification the programs for devices without a link
// layer header; the result is those, on the same maps.
func SplitBare(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	bare := spec.Copy()
	for _, name := range []string{progIn, progOut} {
		delete(bare.Programs, name)
	}
	for name := range bare.Programs {
		delete(spec.Programs, name)
	}
	return bare
}

// Config is what a Path is told.
type Config struct {
	Collection *ebpf.Collection // made from Spec and SplitBare; stays the caller's
	// LoadBare makes the programs that SplitBare took out, on the maps of
	// Collection; they stay the caller's. It is called when there is a device
	// that needs them.
	LoadBare func() (*ebpf.Collection, error)
	PinDir   string       // of this backend on a BPF file system; links are below
	Log      *slog.Logger // never nil
	// LocalhostNodePorts lets answers to 127.0.0.0/8 come back through lo.
	LocalhostNodePorts bool
	// ConnectionsFlag is how warnings name the setting of the size of the
	// connection table.
	ConnectionsFlag string
	// Connections, if set, is told now and then how many entries the connection
	// table has.
	Connections *atomic.Int64
	// Retired, if set, says that nothing new begins, so that what is over is
	// forgotten sooner.
	Retired *atomic.Bool
}

// Path is the packet path at work.
type Path struct {
	cfg     Config
	hooks   hooks
	devices *ebpf.Map
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu   sync.Mutex
	pods dataplane.LocalPods
	// Devices as the kernel has them now: attached, and written to the map.
	attached map[int]bool
	written  map[uint32]device
}

// Start attaches the programs to all devices and follows them until Close. An
// older agent's programs are replaced in one step per hook. When it returns,
// every device that is there has its programs, or an error names it.
func Start(ctx context.Context, cfg Config, node *dataplane.Node) (*Path, error) {
	h, err := openHooks(cfg)
	if err != nil {
		return nil, err
	}
	p := &Path{cfg: cfg, hooks: h, devices: cfg.Collection.Maps[mapDevices], attached: map[int]bool{}, written: map[uint32]device{}}
	if node != nil {
		p.pods = node.LocalPods
	}
	if err := openLoopback(cfg); err != nil {
		return nil, err
	}
	if err := p.readDevices(); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	changes, err := watchDevices(running, cfg.Log)
	if err != nil {
		stop()
		return nil, err
	}
	if err := p.update(); err != nil {
		stop()
		return nil, err
	}
	if err := p.keepPorts(ctx); err != nil {
		cfg.Log.Warn("connections that the kernel's NAT masquerades may break, as new ones may get their source ports", "error", err)
	}
	p.done.Go(func() { p.follow(running, changes) })
	p.done.Go(func() { newCollector(cfg).run(running) })
	return p, nil
}

// SetNode tells how pods are recognised from now on.
func (p *Path) SetNode(node *dataplane.Node) error {
	p.mu.Lock()
	p.pods = node.LocalPods
	p.mu.Unlock()
	return p.update()
}

// Repair puts back what somebody took away: programs, and what is noted of
// devices.
func (p *Path) Repair() error {
	if err := openLoopback(p.cfg); err != nil {
		return err
	}
	p.mu.Lock()
	clear(p.attached)
	clear(p.written)
	err := p.readDevices()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return p.update()
}

// Check is an error that names each device without our programs, or of which is
// noted something else than was written.
func (p *Path) Check() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing devices: %w", err)
	}
	errs := []error{checkLoopback(p.cfg), p.checkDevices()}
	for _, l := range links {
		if err := p.hooks.check(l); err != nil && !isGone(l.Attrs().Index) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close stops following devices and ageing connections. Forwarding stays.
func (p *Path) Close() error {
	p.stop()
	p.done.Wait()
	return nil
}

// settleTime joins changes that come together into one update.
const settleTime = 10 * time.Millisecond

// retryTime is when a failed update is tried again.
const retryTime = 5 * time.Second

// follow updates devices whenever one changes.
func (p *Path) follow(ctx context.Context, changes <-chan struct{}) {
	retry := time.NewTimer(retryTime)
	defer retry.Stop()
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-retry.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settleTime):
		}
		if err := p.update(); err != nil {
			p.cfg.Log.Error("following the node's devices; some may not serve Services yet", "error", err, "retry", retryTime)
			retry.Reset(retryTime)
		}
	}
}

func loopbackSettings(cfg Config) []string {
	names := []string{"net/ipv4/conf/lo/accept_local"}
	if cfg.LocalhostNodePorts {
		names = append(names, "net/ipv4/conf/lo/route_localnet")
	}
	return names
}

func checkLoopback(cfg Config) error {
	var errs []error
	for _, name := range loopbackSettings(cfg) {
		if on, err := sysctl.Proc.Int(name); err == nil && on == 0 {
			errs = append(errs, fmt.Errorf("sysctl %s is 0, so that the node does not reach its own NodePorts", name))
		}
	}
	return errors.Join(errs...)
}

// checkDevices compares what is noted of devices with what was written.
func (p *Path) checkDevices() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for index, want := range p.written {
		var have device
		err := p.devices.Lookup(index, &have)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			errs = append(errs, fmt.Errorf("map %s: device %d is missing", mapDevices, index))
		case err != nil:
			errs = append(errs, fmt.Errorf("reading map %s: %w", mapDevices, err))
		case have != want:
			errs = append(errs, fmt.Errorf("map %s: device %d is not as it was written", mapDevices, index))
		}
	}
	return errors.Join(errs...)
}

// openLoopback lets the stack take from lo what the node's own connections get
// as answers from a Service: the node's own address, or 127.0.0.1, as source.
// Both settings are of lo alone, which nobody else can send to.
func openLoopback(cfg Config) error {
	var errs []error
	for _, name := range loopbackSettings(cfg) {
		if err := sysctl.Proc.SetInt(name, 1); err != nil {
			errs = append(errs, fmt.Errorf("so that the node reaches its own NodePorts: %w", err))
		}
	}
	return errors.Join(errs...)
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// Options is what only this backend is told.
type Options struct {
	// Scheduler chooses endpoints for Services that do not say. Default DefaultScheduler.
	Scheduler string
	// ExcludeCIDRs are addresses whose IPVS services are another program's: where
	// it has one, a Service that wants the same place is refused.
	ExcludeCIDRs []netip.Prefix
	// StrictARP keeps the node from answering ARP for Service addresses.
	StrictARP bool
	// Timeouts of connections without packets; 0: the kernel's.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// DrainTimeout is how long connections to an endpoint that was removed may go
	// on. Default DefaultDrainTimeout.
	DrainTimeout time.Duration
}

// What is not said is so.
const (
	DefaultScheduler    = "rr" // round robin
	DefaultDrainTimeout = 15 * time.Minute
)

func (o Options) scheduler() string {
	if o.Scheduler == "" {
		return DefaultScheduler
	}
	return o.Scheduler
}

func (o Options) drainTimeout() time.Duration {
	if o.DrainTimeout == 0 {
		return DefaultDrainTimeout
	}
	return o.DrainTimeout
}

// Driver opens the backend. It programs the network namespace of this process.
func Driver(o Options) dataplane.Driver {
	return dataplane.Driver{
		Name:  "ipvs",
		Probe: func(_ context.Context, cfg dataplane.Config) error { return probe(o, cfg) },
		Open: func(_ context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
			var err error
			if cfg.Families, err = usable(o, cfg); err != nil {
				return nil, err
			}
			return open(o, cfg)
		},
		Find:    func(context.Context) ([]string, error) { return find() },
		Cleanup: func(_ context.Context, cfg dataplane.Config) error { return cleanup(cfg.Log) },
		Drain:   drainAll,
		Serves:  Serves,
		Needs: append(dataplane.NetfilterNeeds(), dataplane.Need{
			Kind: dataplane.Module, Name: "IPVS", Module: "ip_vs", Loaded: "/proc/net/ip_vs", Lack: dataplane.Notable,
			Advice: "the IPVS backend needs a kernel with CONFIG_IP_VS",
		}),

		OwnsConnections: true,
	}
}

func open(o Options, cfg dataplane.Config) (*backend, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	if cfg.MasqueradeBit < 0 || cfg.MasqueradeBit > 31 {
		return nil, fmt.Errorf("masquerade bit %d is not within 0 to 31", cfg.MasqueradeBit)
	}
	if !slices.Contains(dataplane.Schedulers(), o.scheduler()) {
		return nil, fmt.Errorf("IPVS scheduler %q is not known; it can be %s", o.Scheduler, strings.Join(dataplane.Schedulers(), ", "))
	}
	if err := netns.CheckThread(); err != nil {
		return nil, err
	}
	b := &backend{options: o, cfg: cfg, log: cfg.Log, drains: map[draining]time.Time{}, schedulers: map[string]triedScheduler{}}
	b.searchScheduler = b.findScheduler
	for _, f := range cfg.Families {
		b.families = append(b.families, &familyBackend{backend: b, table: newTable(f, &b.counts), reader: newTable(f, &counts{})})
	}
	var err error
	if b.kernel, err = openKernel(&b.counts); err != nil {
		return nil, err
	}
	if b.reader, err = openKernel(&counts{}); err != nil {
		b.kernel.close()
		return nil, err
	}
	if b.watch, err = startWatch(b); err != nil {
		b.kernel.close()
		b.reader.close()
		return nil, err
	}
	var ctx context.Context
	ctx, b.stop = context.WithCancel(context.Background())
	b.drainer.Go(func() { b.keepDraining(ctx) })
	return b, nil
}

// handle is what is asked of the kernel's IPVS; an ipvs.Handle does it, and a fake in tests.
type handle interface {
	NewService(*ipvs.Service) error
	UpdateService(*ipvs.Service) error
	DelService(*ipvs.Service) error
	GetService(*ipvs.Service) (*ipvs.Service, error)
	GetServices() ([]*ipvs.Service, error)
	NewDestination(*ipvs.Service, *ipvs.Destination) error
	UpdateDestination(*ipvs.Service, *ipvs.Destination) error
	DelDestination(*ipvs.Service, *ipvs.Destination) error
	GetDestinations(*ipvs.Service) ([]*ipvs.Destination, error)
	GetConfig() (*ipvs.Config, error)
	SetConfig(*ipvs.Config) error
	Close()
}

// kernel is IPVS and our routes in this network namespace. One goroutine at a time
// uses it.
type kernel struct {
	ipvs   handle
	routes *routes
	counts *counts
	own    atomic.Int64 // services that were made, less those that were removed
}

// openKernel opens IPVS. The library says that all is well where the kernel has
// none, so the kernel is asked first.
func openKernel(c *counts) (*kernel, error) {
	if err := hasIPVS(); err != nil {
		return nil, err
	}
	h, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("opening IPVS: %w", err)
	}
	r, err := openRoutes(c)
	if err != nil {
		h.Close()
		return nil, err
	}
	return &kernel{ipvs: h, routes: r, counts: c}, nil
}

func (k *kernel) close() {
	k.ipvs.Close()
	k.routes.close()
}

// hasIPVS asks the kernel for IPVS, and has its module loaded where there is one.
func hasIPVS() error {
	_, err := netlink.GenlFamilyGet("IPVS")
	if errors.Is(err, unix.ENOENT) {
		loadIPVS()
		_, err = netlink.GenlFamilyGet("IPVS")
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the kernel has no IPVS (module ip_vs): %w", dataplane.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("asking the kernel for IPVS: %w", err)
	}
	return nil
}

// modprobeMost is how long the loading of a module may take.
const modprobeMost = 10 * time.Second

// loadIPVS has the module loaded. What that achieved is seen next.
func loadIPVS() {
	ctx, cancel := context.WithTimeout(context.Background(), modprobeMost)
	defer cancel()
	_ = exec.CommandContext(ctx, "modprobe", "ip_vs").Run()
}

// probe finds out whether the backend works here.
func probe(o Options, cfg dataplane.Config) error {
	_, err := usable(o, cfg)
	return err
}

// usable makes what the backend makes, in a network namespace of its own, and
// returns the families for which that works.
func usable(o Options, cfg dataplane.Config) (have []dataplane.Family, err error) {
	if err := hasIPVS(); err != nil {
		return nil, err
	}
	err = netns.InScratch(func() error {
		have, err = cfg.Usable(func(f dataplane.Family) error {
			if err := tryServices(f, o.scheduler()); err != nil {
				return err
			}
			return tryTable(f)
		})
		return err
	})
	return have, err
}

// tryServices makes an IPVS service of each protocol and sees that it is there.
func tryServices(f dataplane.Family, scheduler string) error {
	k, err := openKernel(&counts{})
	if err != nil {
		return err
	}
	defer k.close()
	want := 0
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		key := serviceKey{p, netip.AddrPortFrom(exampleOf(f), 80)}
		err := k.put(key, scheduler, false)
		switch {
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("the kernel has no IPVS scheduler %s (module ip_vs_%s): %w", scheduler, scheduler, dataplane.ErrUnsupported)
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
			return fmt.Errorf("the kernel's IPVS knows no %s over %s: %w", p, f, dataplane.ErrUnsupported)
		case err != nil:
			return err
		}
		want++
	}
	list, err := k.ipvs.GetServices()
	if err != nil {
		return fmt.Errorf("reading the IPVS services: %w", err)
	}
	n := 0
	for _, s := range list {
		if key, ok := keyOf(s); ok && key.addr.Addr() == exampleOf(f) && s.Timeout == ownTimeout {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("of %d IPVS services that were made %d are there: %w", want, n, dataplane.ErrUnsupported)
	}
	return nil
}

// exampleOf returns an address of a family that is nobody's.
func exampleOf(f dataplane.Family) netip.Addr {
	if f == dataplane.IPv4 {
		return netip.MustParseAddr("192.0.2.1")
	}
	return netip.MustParseAddr("2001:db8::1")
}

// tryTable makes our table with a chain of each kind.
func tryTable(f dataplane.Family) error {
	t := newTable(f, &counts{})
	defer func() { _ = t.Close() }()
	r := rulesFor(&node{family: f, mark: 1, localhost: f == dataplane.IPv4, pods: dataplane.LocalPods{Interface: "cni0", InterfacePrefix: "veth"}})
	change := &nft.Change{Remake: true, Chains: r.constants(), Put: map[nft.Element]string{}}
	for prefix, set := range map[string]string{prefixPick: setPicks, prefixSticky: setSticky, prefixStickyIn: setStickyIn, prefixLearn: setLearn} {
		chain := numbered(prefix, 10)
		change.Chains[chain] = r.optional(chain)
		key := nft.PlaceBytes(exampleOf(f), dataplane.TCP, 80)
		if set == setLearn {
			key = nft.NumberBytes(1)
		}
		change.Put[nft.Element{Family: f, Set: set, Key: key}] = chain
	}
	err := t.Write(change, nil)
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return fmt.Errorf("the kernel's nftables do not take our rules (%w): %w", err, dataplane.ErrUnsupported)
	}
	return nil
}

// find returns what is there of our services and tables.
func find() ([]string, error) {
	var out []string
	n, err := countServices()
	if n > 0 {
		out = append(out, fmt.Sprintf("%d IPVS services", n))
	}
	errs := []error{err}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t := newTable(f, &counts{})
		there, err := t.Exists()
		errs = append(errs, err, t.Close())
		if there {
			out = append(out, t.String())
		}
	}
	return out, errors.Join(errs...)
}

func countServices() (int, error) {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return 0, nil // so there are none
	}
	k, err := openKernel(&counts{})
	if err != nil {
		return 0, err
	}
	defer k.close()
	ours, err := k.ours()
	return len(ours), err
}

// cleanup removes our routes, services and tables of both families.
func cleanup(log *slog.Logger) error {
	if err := netns.CheckThread(); err != nil {
		return err
	}
	var c counts
	r, err := openRoutes(&c)
	if err != nil {
		return err
	}
	defer r.close()
	errs := []error{cleanupRoutes(r), cleanupServices(&c)}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		errs = append(errs, cleanupTable(newTable(f, &c)))
	}
	log.Debug("IPVS cleaned up", "services", c.messages, "routes", c.routes)
	return errors.Join(errs...)
}

func cleanupRoutes(r *routes) error {
	var errs []error
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		have, err := r.read(f)
		errs = append(errs, err)
		for a := range have {
			errs = append(errs, r.remove(a))
		}
	}
	return errors.Join(errs...)
}

func cleanupServices(c *counts) error {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return nil // so there are none
	}
	k, err := openKernel(c)
	if err != nil {
		return err
	}
	defer k.close()
	all, err := k.read()
	if err != nil {
		return err
	}
	var errs []error
	for key, have := range all {
		if have.ours {
			errs = append(errs, k.remove(key))
		}
	}
	return errors.Join(errs...)
}

func cleanupTable(t *nft.Table) error {
	defer func() { _ = t.Close() }()
	guards, err := t.ChainComments(chainInput)
	if err != nil {
		return err
	}
	if localnet.FromComments(guards) == localnet.Switched {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	return t.Remove()
}

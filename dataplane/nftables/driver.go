package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// What the backend offers in addition to dataplane.Backend.
var (
	_ dataplane.Counter      = (*backend)(nil)
	_ dataplane.Familied     = (*backend)(nil)
	_ dataplane.FamilyHolder = (*backend)(nil)
	_ dataplane.Watched      = (*backend)(nil)
)

// Driver opens the backend. It programs the network namespace of this process.
func Driver() dataplane.Driver {
	return dataplane.Driver{
		Name:  "nftables",
		Needs: dataplane.NetfilterNeeds(),
		Probe: func(_ context.Context, cfg dataplane.Config) error { return probe(cfg) },
		Open: func(_ context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
			var err error
			if cfg.Families, err = cfg.Usable(probeFamily); err != nil {
				return nil, err
			}
			return open(cfg)
		},
		Find:    func(context.Context) ([]string, error) { return find() },
		Cleanup: func(context.Context, dataplane.Config) error { return cleanup() },
	}
}

func open(cfg dataplane.Config) (*backend, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	if cfg.MasqueradeBit < 0 || cfg.MasqueradeBit > 31 {
		return nil, fmt.Errorf("masquerade bit %d is not within 0 to 31", cfg.MasqueradeBit)
	}
	if err := netns.CheckThread(); err != nil {
		return nil, err
	}
	b := &backend{cfg: cfg, log: cfg.Log, counter: newCounter(cfg.Families), refused: map[*dataplane.ServicePort]error{}}
	var tables []*nft.Table
	for _, f := range cfg.Families {
		tables = append(tables, nft.NewTable(f, spec(f), &b.counts))
	}
	var err error
	if b.watch, err = nft.StartWatch(cfg.Log, tables); err != nil {
		return nil, err
	}
	for _, t := range tables {
		b.families = append(b.families, &familyBackend{table: t, reader: b.watch.Reader(t), log: cfg.Log, watch: b.watch, mark: 1 << cfg.MasqueradeBit, localhost: cfg.LocalhostNodePorts && t.Family == dataplane.IPv4})
	}
	return b, nil
}

// Families implements dataplane.Familied.
func (b *backend) Families() []dataplane.Family { return b.cfg.Families }

// probe has the kernel check a table of each family.
func probe(cfg dataplane.Config) error {
	_, err := cfg.Usable(probeFamily)
	return err
}

// probeFamily has the kernel check a table with a chain and an element of each kind.
func probeFamily(f dataplane.Family) error {
	n, port := sample(f)
	err := try(n, port)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (CAP_NET_ADMIN is needed)", err)
	}
	if err != nil {
		return fmt.Errorf("the kernel's nftables do not take our rules (%w): %w", err, dataplane.ErrUnsupported)
	}
	return nil
}

// sample returns a node and a ServicePort that need something of each kind.
func sample(f dataplane.Family) (*node, *dataplane.ServicePort) {
	addr := netip.MustParseAddr("192.0.2.1")
	if f == dataplane.IPv6 {
		addr = netip.MustParseAddr("2001:db8::1")
	}
	n := &node{
		family: f, mark: 1, localhost: f == dataplane.IPv4, addresses: []netip.Addr{addr}, ranges: []netip.Prefix{netip.PrefixFrom(addr, 24)},
		prefixes: []netip.Prefix{netip.PrefixFrom(addr, 28)}, pods: dataplane.LocalPods{Interface: "cni0", InterfacePrefix: "veth"},
	}
	return n, example(f, addr)
}

func example(f dataplane.Family, addr netip.Addr) *dataplane.ServicePort {
	pool := &dataplane.Pool{Endpoints: []dataplane.Endpoint{{Addr: netip.AddrPortFrom(addr, 8080), Local: true}}}
	return &dataplane.ServicePort{
		ID: dataplane.PortID{Protocol: dataplane.TCP, Family: f}, Affinity: 1e9,
		Frontends: []dataplane.Frontend{
			{Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(addr, 80), Pool: pool, SNAT: dataplane.SNATNonPods},
			{Kind: dataplane.LoadBalancer, Addr: netip.AddrPortFrom(addr, 81), Pool: &dataplane.Pool{}, Inside: pool, Sources: []netip.Prefix{netip.PrefixFrom(addr, 24)}},
			{Kind: dataplane.NodePort, Addr: netip.AddrPortFrom(f.Unspecified(), 30080), Pool: pool, Inside: pool, SNAT: dataplane.SNATAll},
		},
	}
}

// find returns the names of our tables that are there.
func find() ([]string, error) {
	var out []string
	var errs []error
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t := nft.NewTable(f, spec(f), &nft.Counts{})
		there, err := t.Exists()
		errs = append(errs, err, t.Close())
		if there {
			out = append(out, t.String())
		}
	}
	return out, errors.Join(errs...)
}

// cleanup removes our tables of both families.
func cleanup() error {
	if err := netns.CheckThread(); err != nil {
		return err
	}
	var errs []error
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t := nft.NewTable(f, spec(f), &nft.Counts{})
		errs = append(errs, cleanupTable(t), t.Close())
	}
	return errors.Join(errs...)
}

func cleanupTable(t *nft.Table) error {
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

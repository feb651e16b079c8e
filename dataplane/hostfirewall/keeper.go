package hostfirewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

const (
	// period is the longest time from another program's change to the rules until a
	// Keeper follows. kube-proxy looks as often. Most changes are noticed sooner.
	period = 30 * time.Second
	// legacyPause is between two looks at the size of legacy iptables' tables.
	legacyPause = 2 * time.Second
	// settle is how long a Keeper lets a change of many steps end.
	settle = 50 * time.Millisecond
	// Other programs may change their rules all the time. Looks for their sake are
	// noticedDuty times as long apart as a look takes, within these bounds.
	noticedDuty  = 50
	noticedPause = time.Second
	noticedMost  = 3 * time.Second
)

// Config is what a Keeper is told.
type Config struct {
	Log      *slog.Logger
	Families []dataplane.Family
	// MasqueradeBit is the bit of the packet mark that the backend sets for
	// connections that it masquerades, which are those from outside.
	MasqueradeBit int
}

// Keeper keeps a host's firewall open for Services' connections, and for their
// health checks, while the firewall drops what nobody accepts.
type Keeper struct {
	cfg  Config
	poke chan struct{} // one slot

	mu     sync.Mutex
	known  *dataplane.Snapshot
	checks map[uint16]int              // ports of health checks → how many ServicePorts have it
	closed []string                    // what drops and was opened, as the last look found it
	opened map[string]bool             // by command and chain
	sizes  map[dataplane.Family]uint32 // of legacy iptables' table, in bytes
	err    error                       // of the last look
}

// NewKeeper readies a Keeper; Run starts it.
func NewKeeper(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, poke: make(chan struct{}, 1), checks: map[uint16]int{}, sizes: map[dataplane.Family]uint32{}}
}

// Synced says that the kernel forwards s now. It costs what changed.
func (k *Keeper) Synced(s *dataplane.Snapshot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var before dataplane.Ports
	if k.known != nil {
		before = k.known.Ports
	}
	changed := k.known == nil
	k.known = s
	for old, cur := range dataplane.Diff(before, s.Ports) {
		changed = k.count(cur, 1) || changed
		changed = k.count(old, -1) || changed
	}
	if changed {
		notice(k.poke)
	}
}

// count adds a ServicePort's health check, or takes it away, and reports whether
// the set of ports changed.
func (k *Keeper) count(p *dataplane.ServicePort, by int) bool {
	if p == nil || p.HealthCheck == nil {
		return false
	}
	port := p.HealthCheck.Port
	k.checks[port] += by
	if k.checks[port] == 0 {
		delete(k.checks, port)
		return true
	}
	return by > 0 && k.checks[port] == 1
}

// Run looks after the rules until ctx ends. They stay, as forwarding does.
//
// It begins with the first Snapshot that the kernel forwards. While anybody listens
// to nftables, the kernel tells of each element that a backend writes, and there are
// most of them before.
func (k *Keeper) Run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-k.poke:
		notice(k.poke) // for the first look, which comes when all is listened to
	}
	notices := make(chan struct{}, 1)
	var following sync.WaitGroup
	defer following.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f, err := nft.Follow(); err != nil {
		k.cfg.Log.Debug("cannot listen to nftables; the host's firewall is looked at now and then", "every", period, "error", err)
	} else {
		following.Go(func() { followNFT(ctx, f, notices) })
	}
	following.Go(func() { k.followLegacy(ctx, notices) })
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		noticed := false
		select {
		case <-ctx.Done():
			return
		case <-k.poke:
		case <-tick.C:
		case <-notices:
			noticed = true
		}
		if noticed && (!pause(ctx, settle) || k.whole()) {
			continue
		}
		begin := time.Now()
		k.look(ctx)
		k.measure() // what we wrote is no news
		if noticed {
			pause(ctx, min(max(noticedPause, noticedDuty*time.Since(begin)), noticedMost))
		}
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// followNFT notices changes to nftables' tables of the name that iptables uses.
func followNFT(ctx context.Context, f *nft.Follower, notices chan<- struct{}) {
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	for {
		changed, err := f.Next(filter)
		if ctx.Err() != nil {
			return
		}
		if err != nil || len(changed) > 0 {
			notice(notices)
		}
	}
}

// followLegacy notices changes to the tables of legacy iptables by their size, of
// which the kernel notifies nobody.
func (k *Keeper) followLegacy(ctx context.Context, notices chan<- struct{}) {
	for pause(ctx, legacyPause) {
		if k.measure() {
			notice(notices)
		}
	}
}

// measure notes the sizes of legacy iptables' tables, and reports whether one is
// another than it was.
func (k *Keeper) measure() (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.cfg.Families {
		var size uint32
		if slices.Contains(xtables.LegacyTables(f), filter) {
			var err error
			if size, err = xtables.LegacySize(f, filter); err != nil {
				continue
			}
		}
		changed = changed || size != k.sizes[f]
		k.sizes[f] = size
	}
	return changed
}

func notice(notices chan<- struct{}) {
	select {
	case notices <- struct{}{}:
	default:
	}
}

// whole reports whether all that a look opened is led to still, and nothing else
// can need it. It runs no command, because other programs may change their rules
// all the time.
func (k *Keeper) whole() bool {
	k.mu.Lock()
	opened, failed := k.opened, k.err != nil
	k.mu.Unlock()
	found, err := tables(k.cfg.Families)
	chains := k.chains()
	if err != nil || failed || len(found)*len(chains) != len(opened) {
		return false
	}
	for _, t := range found {
		for _, c := range chains {
			if t.outline == nil || !opened[t.command+c.chain] {
				return false
			}
			if jumps, err := t.jumps(c.chain, c.ours); err != nil || !jumps {
				return false
			}
		}
	}
	return true
}

// State tells which rules drop what nobody accepts and are kept open for
// Services, and why some could not be.
func (k *Keeper) State() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.closed), k.err
}

// look makes the rules as they must be, and logs what is news.
func (k *Keeper) look(ctx context.Context) {
	closed, opened, err := k.keep(ctx)
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	k.opened = opened
	news := !slices.Equal(closed, k.closed)
	failed := err != nil && (k.err == nil || k.err.Error() != err.Error())
	k.closed, k.err = closed, err
	k.mu.Unlock()
	if news {
		k.cfg.Log.Info("the host's firewall drops what nobody accepts; it is kept open for Services' connections", "rules", closed)
	}
	if failed {
		k.cfg.Log.Error("the host's firewall cannot be opened; connections from outside may not reach Services", "error", err)
	}
}

// keep opens each chain that drops the rest, and takes back what was opened in
// chains that do not any more.
func (k *Keeper) keep(ctx context.Context) (closed []string, opened map[string]bool, err error) {
	opened = map[string]bool{}
	found, err := readyTables(k.cfg.Families)
	errs := []error{err}
	for _, t := range found {
		for _, c := range k.chains() {
			if ctx.Err() != nil { // a command may have waited for the xtables lock
				return nil, nil, ctx.Err()
			}
			drops, err := t.drops(c.chain)
			switch {
			case err != nil:
			case drops == "":
				err = t.close(c.chain, c.ours)
			default:
				if err = t.open(c.chain, c.ours, c.rules); err == nil {
					closed = append(closed, t.command+" "+drops)
					opened[t.command+c.chain] = true
				}
			}
			errs = append(errs, err)
		}
	}
	return closed, opened, errors.Join(errs...)
}

// opening is what a chain must accept.
type opening struct {
	chain, ours string
	rules       []string
}

func (k *Keeper) chains() []opening {
	bit := uint32(1) << k.cfg.MasqueradeBit
	// Another program's mark may have our bit, so that the connection must have
	// been translated, too.
	first := fmt.Sprintf("-m mark --mark %#x/%#x -m conntrack --ctstate DNAT -j ACCEPT", bit, bit)
	const rest = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
	var in []string
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, port := range slices.Sorted(maps.Keys(k.checks)) {
		in = append(in, acceptPort(port))
	}
	return []opening{{forward, openForward, []string{first, rest}}, {input, openInput, in}}
}

// Closed tells which rules of iptables drop what nobody accepts, in this
// network namespace. It changes nothing.
func Closed(families []dataplane.Family) ([]string, error) {
	found, err := readyTables(families)
	errs := []error{err}
	var out []string
	for _, t := range found {
		for _, chain := range []string{forward, input} {
			drops, err := t.drops(chain)
			if drops != "" {
				out = append(out, t.command+" "+drops)
			}
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// LayerName is what cleanup and takeover call what a Keeper wrote.
const LayerName = "hostfirewall"

// Layer cleans up what a Keeper wrote.
func Layer() dataplane.Driver {
	return dataplane.Driver{
		Name:    LayerName,
		OnTop:   true,
		Find:    func(context.Context) ([]string, error) { return find(dataplane.HostFamilies()) },
		Cleanup: func(_ context.Context, cfg dataplane.Config) error { return Remove(cfg.Families) },
	}
}

// find returns the chains of ours that are there.
func find(families []dataplane.Family) ([]string, error) {
	found, err := readyTables(families)
	errs := []error{err}
	var out []string
	for _, t := range found {
		for _, chain := range []string{openForward, openInput} {
			exists, err := t.has(chain)
			if exists {
				out = append(out, "chain "+chain+" of "+t.command)
			}
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// Remove removes all that a Keeper wrote.
func Remove(families []dataplane.Family) error {
	found, err := readyTables(families)
	errs := []error{err}
	for _, t := range found {
		errs = append(errs, t.close(forward, openForward), t.close(input, openInput))
	}
	return errors.Join(errs...)
}

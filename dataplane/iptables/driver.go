// Package iptables is the backend on iptables, nft or legacy: trees of chains that find the frontend, one chain per pool that picks the endpoint.
//
// See README.md for the chains and a packet's way through them.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// Options is what only this backend is told.
type Options struct {
	// Mode is "nft", "legacy" or "auto", which is also the zero value: the
	// variant that kubelet uses, then the one that an earlier Switchyard used,
	// then the system's default.
	Mode string
	// LockWait is how long one try waits for the xtables lock of legacy
	// iptables, in whole seconds; there are three tries. Default 5 s.
	LockWait time.Duration
	// LockDir is the directory of the lock that keeps the commands of two
	// processes apart; empty means lock.Dir.
	LockDir string
}

func (o Options) lockWait() int {
	if o.LockWait < time.Second {
		return 5
	}
	return int(o.LockWait.Seconds())
}

// Driver opens the backend. It programs the network namespace of this process.
func Driver(o Options) dataplane.Driver {
	return dataplane.Driver{
		Name:          "iptables",
		OpensFirewall: true,
		Needs:         needs(),
		Open: func(ctx context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
			return open(ctx, o, cfg)
		},
		Find:    func(ctx context.Context) ([]string, error) { return Find(ctx, isOwn) },
		Cleanup: func(ctx context.Context, cfg dataplane.Config) error { return cleanup(ctx, o, cfg) },
	}
}

// needs returns what the backend needs of the machine.
func needs() []dataplane.Need {
	return append([]dataplane.Need{
		{Kind: dataplane.Capability, Name: "CAP_NET_RAW", Bit: unix.CAP_NET_RAW, Lack: dataplane.Serious, Advice: "iptables needs it"},
		{Kind: dataplane.Programs, Name: "iptables", Programs: []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}, Lack: dataplane.Serious,
			Advice: "install the package iptables (Debian, Fedora: iptables or iptables-nft), where the iptables backend is wanted"},
	}, dataplane.NetfilterNeeds()...)
}

func open(ctx context.Context, o Options, cfg dataplane.Config) (*backend, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	m, err := makeMarks(cfg.MasqueradeBit)
	if err != nil {
		return nil, err
	}
	if err := netns.CheckThread(); err != nil {
		return nil, err
	}
	v, why, err := resolve(ctx, o.Mode, cfg.Families)
	if err != nil {
		return nil, err
	}
	b := &backend{otherMost: otherMost}
	if b.lock, err = openLock(o.LockDir); err != nil {
		return nil, err
	}
	_, err = cfg.Usable(func(f dataplane.Family) error {
		cmds, err := findCommands(ctx, v, f, o.lockWait())
		if err != nil {
			return err
		}
		cmds.lock = b.lock
		log := cfg.Log.With("family", f.String())
		h := &half{family: f, commands: cmds, log: log, marks: m, localhost: cfg.LocalhostNodePorts}
		if err := h.probe(ctx); err != nil {
			return err
		}
		b.halves = append(b.halves, h)
		if other, err := findCommands(ctx, v.other(), f, o.lockWait()); err == nil {
			other.lock = b.lock
			b.others = append(b.others, &half{family: f, commands: other, log: log})
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.watch = startWatch(cfg.Log, v, b.halves)
	for _, h := range b.halves {
		h.commands.watch = b.watch
	}
	cfg.Log.Info("iptables variant chosen", "variant", string(v), "reason", why, "version", b.halves[0].commands.version)
	return b, nil
}

// Families implements dataplane.Familied.
func (b *backend) Families() []dataplane.Family {
	var out []dataplane.Family
	for _, h := range b.halves {
		out = append(out, h.family)
	}
	return out
}

// cleanup removes our rules of both variants and both families.
func cleanup(ctx context.Context, o Options, cfg dataplane.Config) error {
	return everyVariant(ctx, o, cfg.Log, clean)
}

// everyVariant runs do for both variants and both families, as far as they are
// installed, under the lock.
func everyVariant(ctx context.Context, o Options, log *slog.Logger, do func(context.Context, *commands, dataplane.Family) error) error {
	if err := netns.CheckThread(); err != nil {
		return err
	}
	lock, err := openLock(o.LockDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.close() }()
	unlock, err := lock.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, v := range []Variant{NFT, Legacy} {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			cmds, err := findCommands(ctx, v, f, o.lockWait())
			if errors.Is(err, dataplane.ErrUnsupported) {
				log.Debug("nothing to remove where iptables is not installed", "variant", string(v), "family", f.String(), "reason", err)
				continue
			}
			if err == nil {
				cmds.lock = lock
				err = do(ctx, cmds, f)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("removing the rules of iptables-%s, %s: %w", v, f, err))
			}
		}
	}
	return errors.Join(errs...)
}

// clean removes our chains, and the rules that lead to them, of one variant and
// family: first what decides, then what enforces.
func clean(ctx context.Context, cmds *commands, f dataplane.Family) error {
	if !cmds.inUse(f) {
		return nil
	}
	have, err := cmds.read(ctx)
	if err != nil {
		return err
	}
	if f == dataplane.IPv4 && localnetOf(have[tableFilter].chains[chainInput]) == localnetSwitch {
		if err := setRouteLocalnet(false); err != nil {
			return err
		}
	}
	for _, table := range []string{tableNAT, tableFilter} {
		if len(have[table].chains) == 0 {
			continue
		}
		tx := &transaction{}
		have[table].removeAll(tx.table(table))
		if err := cmds.write(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

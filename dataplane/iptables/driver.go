package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// Options holds what only this backend is told.
type Options struct {
	// Mode is "nft", "legacy" or "auto", which is also the zero value: the
	// variant that kubelet uses, then the one that an earlier Switchyard used,
	// then the system's default.
	Mode string
	// LockWait is how long one try waits for the xtables lock of legacy
	// iptables, in whole seconds; there are three tries. Default 5 s.
	LockWait time.Duration
	// LockDir is the directory of the lock that keeps the commands of two
	// processes apart. Empty means lock.Dir.
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

// open finds the programs of each family, and starts to watch what others change.
func open(ctx context.Context, o Options, cfg dataplane.Config) (*backend, error) {
	if len(cfg.Families) == 0 {
		return nil, errors.New("no address family to program")
	}
	if cfg.MasqueradeBit < 0 || cfg.MasqueradeBit > 31 {
		return nil, fmt.Errorf("masquerade bit %d is not within 0 to 31", cfg.MasqueradeBit)
	}
	if err := netns.CheckThread(); err != nil {
		return nil, err
	}
	v, why, err := restore.Choose(ctx, o.Mode, cfg.Families, chainServices)
	if err != nil {
		return nil, err
	}
	b := &backend{accepted: &dataplane.Snapshot{}}
	if b.lock, err = restore.OpenLock(o.LockDir); err != nil {
		return nil, err
	}
	_, err = cfg.Usable(func(f dataplane.Family) error {
		cmds, err := restore.Find(ctx, v, f, o.lockWait())
		if err != nil {
			return err
		}
		cmds.Lock = b.lock
		fb := &familyBackend{
			family: f, commands: cmds, log: cfg.Log.With("family", f.String()), bit: 1 << cfg.MasqueradeBit, localhost: cfg.LocalhostNodePorts,
			limits: limits{mostTries, mostSearch}, verdicts: verdicts{},
		}
		if err := fb.probe(ctx); err != nil {
			return err
		}
		b.families = append(b.families, fb)
		if other, err := restore.Find(ctx, v.Other(), f, o.lockWait()); err == nil {
			other.Lock = b.lock
			b.others = append(b.others, other)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.watch = startWatch(cfg.Log, v, b.families)
	for _, f := range b.families {
		f.commands.Watch = b.watch
	}
	cfg.Log.Info("iptables variant chosen", "variant", string(v), "reason", why, "version", b.families[0].commands.Version)
	return b, nil
}

// Families returns the families that are programmed.
func (b *backend) Families() []dataplane.Family {
	var out []dataplane.Family
	for _, f := range b.families {
		out = append(out, f.family)
	}
	return out
}

package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// Find returns how many chains of a program there are, those that owns reports, in
// a line for each variant and family. It changes nothing, and loads no module of
// legacy iptables.
func Find(ctx context.Context, owns func(chain string) bool) ([]string, error) {
	var out []string
	var errs []error
	for _, v := range []restore.Variant{restore.NFT, restore.Legacy} {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			chains, err := restore.Chains(ctx, v, f, owns, restore.Filter, restore.NAT, restore.Mangle)
			if err != nil {
				errs = append(errs, fmt.Errorf("looking for chains of iptables-%s, %s: %w", v, f, err))
			}
			if n := len(chains); n > 0 {
				out = append(out, fmt.Sprintf("%d chains of iptables-%s, %s", n, v, f))
			}
		}
	}
	return out, errors.Join(errs...)
}

// cleanup removes our rules of both variants and both families.
func cleanup(ctx context.Context, o Options, cfg dataplane.Config) error {
	return everyVariant(ctx, o, cfg.Log, clean)
}

// everyVariant runs do for both variants and both families, as far as they are
// installed, under the lock.
func everyVariant(ctx context.Context, o Options, log *slog.Logger, do func(context.Context, *restore.Commands) error) error {
	if err := netns.CheckThread(); err != nil {
		return err
	}
	lock, err := restore.OpenLock(o.LockDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	unlock, err := lock.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, v := range []restore.Variant{restore.NFT, restore.Legacy} {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			cmds, err := restore.Find(ctx, v, f, o.lockWait())
			if errors.Is(err, dataplane.ErrUnsupported) {
				log.Debug("nothing to remove where iptables is not installed", "variant", string(v), "family", f.String(), "reason", err)
				continue
			}
			if err == nil {
				cmds.Lock = lock
				err = do(ctx, cmds)
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
func clean(ctx context.Context, cmds *restore.Commands) error {
	if !cmds.InUse() {
		return nil
	}
	have, err := readTables(ctx, cmds)
	if err != nil {
		return err
	}
	if cmds.Family == dataplane.IPv4 && localnetOf(have) == localnet.Switched {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	for _, table := range []string{restore.NAT, restore.Filter} {
		if len(have[table].Chains) == 0 {
			continue
		}
		w := &restore.Writes{}
		have[table].RemoveAll(w.Table(table))
		if err := cmds.Write(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// RemoveChains removes another program's chains, those that owns reports, with the
// rules of built-in chains that lead to them: of both variants and both
// families, from the tables filter, nat and mangle. A chain that a third
// program's chain leads to stays as it is, with all that it leads to.
func RemoveChains(ctx context.Context, log *slog.Logger, owns func(chain string) bool) error {
	return everyVariant(ctx, Options{}, log, func(ctx context.Context, cmds *restore.Commands) error {
		if !cmds.InUse() {
			return nil
		}
		have, err := cmds.Read(ctx, owns, restore.Filter, restore.NAT, restore.Mangle)
		if err != nil {
			return err
		}
		w := &restore.Writes{}
		for name, t := range have {
			for _, chain := range t.KeepUsed() {
				log.Warn("a chain is left, as another program's rules lead to it", "table", name, "chain", chain, "variant", string(cmds.Variant), "family", cmds.Family.String())
			}
			t.RemoveAll(w.Table(name))
		}
		if w.Trim(); w.Empty() {
			return nil
		}
		chains, _ := w.Size()
		log.Info("removing chains", "chains", chains, "variant", string(cmds.Variant), "family", cmds.Family.String())
		return cmds.Write(ctx, w)
	})
}

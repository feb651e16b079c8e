package iptables

import (
	"context"
	"errors"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// isRefusal reports whether iptables or the kernel does not take something that was
// written.
func isRefusal(err error) bool {
	var no *restore.Refusal
	return errors.As(err, &no) && !restore.WithoutTable(err)
}

// commit carries writes out. The kernel routes packets of 127.0.0.0/8 only while the
// rule is there that keeps neighbours out.
func (a *attempt) commit(ctx context.Context, w *restore.Writes) error {
	if a.localnet == localnet.Switched && a.next.localnet == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if !w.Empty() {
		if err := a.commands.Write(ctx, w); err != nil {
			a.counts.failed(a.read == nil)
			return err
		}
		chains, rules := w.Size()
		a.counts.written.Add(uint64(rules))
		a.counts.rules.wrote(w)
		a.log.Debug("rules written", "chains", chains, "rules", rules)
	}
	if a.next.localnet != localnet.Off {
		if err := localnet.Switch(true); err != nil {
			a.localnetFails(err)
		}
	}
	return nil
}

// commitKeepingStale tries once more without the removal of chains: another program's
// rule that leads to one of them must not hold up all else.
func (a *attempt) commitKeepingStale(ctx context.Context, w *restore.Writes, cause error) error {
	stale := w.KeepStale()
	if len(stale) == 0 || a.commit(ctx, w) != nil {
		return cause
	}
	a.stale = append(a.stale, stale...)
	a.log.Warn("chains that are no longer needed cannot be removed; another program's rule may lead to them", "error", cause)
	return nil
}

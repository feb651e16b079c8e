package agent

import (
	"context"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

// takeOver ends what served this node before, once the kernel forwards all
// Services by the backend that runs. Without --take-over, that is what a backend
// wrote which was tried first and cannot program this machine.
func (a *Agent) takeOver(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.forwarding:
	}
	old := a.predecessors()
	if len(old) == 0 {
		return
	}
	takeover.Run(ctx, a.log, a.families, old)
	if ctx.Err() == nil {
		a.log.Info("nothing is left of what served this node before")
	}
}

// predecessors returns what other backends leave in the kernel, less what the
// one that runs uses, and kube-proxy. Without --take-over it returns just what
// proved unfit.
func (a *Agent) predecessors() []takeover.Old {
	cfg := a.config.Dataplane(a.log, a.families)
	var all []takeover.Old
	for _, d := range a.backends.Layers(a.config.Backends()) {
		if slices.Contains(a.choice.Layers, d.Name) || !a.config.Switchyard.TakeOver && a.unfit[d.Name] == nil {
			continue
		}
		all = append(all, takeover.Old{
			Name: d.Name, Drain: takeover.Drain(d, cfg, takeover.MostDrain),
			Remove: func(ctx context.Context) error {
				if err := d.Cleanup(ctx, cfg); err != nil {
					return err
				}
				a.draining.Store(a.othersServe())
				// It may have switched off a sysctl that both want (route_localnet), and
				// the backend may have waited until it was drained.
				_, err := a.syncer.Verify(ctx, true)
				a.leftovers.lookAgain()
				return err
			},
		})
	}
	if !a.config.Switchyard.TakeOver {
		return all
	}
	return append(all, takeover.Old{Name: "kube-proxy", Remove: func(ctx context.Context) error {
		defer a.leftovers.lookAgain()
		return kubeProxy().Remove(ctx, a.log)
	}})
}

// othersServe reports whether another backend, which is to be taken over from, still
// has connections of its own.
func (a *Agent) othersServe() bool {
	if !a.config.Switchyard.TakeOver {
		return false
	}
	for _, d := range a.backends.Layers(a.config.Backends()) {
		if d.Serves == nil || slices.Contains(a.choice.Layers, d.Name) {
			continue
		}
		serves, err := d.Serves()
		if err != nil {
			a.log.Warn("cannot find out whether another backend still serves this node", "backend", d.Name, "error", err)
		}
		if serves {
			return true
		}
	}
	return false
}

package agent

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane/ipvs"
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
				if d.Name == driverIPVS {
					a.podsHeld.Store(false)
				}
				// It may have switched off a sysctl that both want (route_localnet), and
				// sockets of pods may have been held.
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

const driverIPVS = "ipvs"

// holdPodSockets leaves the sockets of pods to packets while IPVS of an earlier
// agent has connections: it takes what comes from an endpoint to a port
// that it served before for an answer of its own, and gives it the Service's
// address. A socket that was translated as it connected does not know that. Those
// of the node itself are not left: IPVS would refuse them.
func (a *Agent) holdPodSockets() *atomic.Bool {
	if !a.config.Switchyard.TakeOver || a.config.Backend() == driverIPVS {
		return nil // IPVS does not go
	}
	serves, err := ipvs.Serves()
	if err != nil {
		a.log.Warn("whether IPVS serves this node is not known", "error", err)
	}
	a.podsHeld.Store(serves)
	return &a.podsHeld
}

package main

import (
	"context"
	"os"

	"github.com/switchyard-io/switchyard/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/kubeproxy"
	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

// takeOver ends what served this node before, once the kernel forwards all
// Services by the backend that runs.
func (a *agent) takeOver(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.forwarding:
	}
	takeover.Run(ctx, a.log, a.families, a.predecessors())
	if ctx.Err() == nil {
		a.log.Info("nothing is left of what served this node before")
	}
}

// predecessors are the other backends, and kube-proxy.
func (a *agent) predecessors() []takeover.Old {
	cfg := a.config.Dataplane(a.log, a.families)
	var all []takeover.Old
	for _, d := range catalog.Drivers(a.config.Backends()) {
		if d.Name == a.backend {
			continue
		}
		old := takeover.Old{Name: d.Name, Remove: func(ctx context.Context) error { return d.Cleanup(ctx, cfg) }}
		if hasConnections(a.config, d) {
			old.Retire = takeover.Retire(d, cfg, a.node, takeover.MostDrain)
		}
		all = append(all, old)
	}
	return append(all, takeover.Old{Name: "kube-proxy", Remove: func(ctx context.Context) error { return kubeproxy.Remove(ctx, a.log) }})
}

// node is this node as the newest Snapshot has it. There is one, as the kernel
// forwards all of an earlier one.
func (a *agent) node() *dataplane.Node { return a.watcher.Around().Snapshot.Node }

// hasConnections tells that a backend is on this node with a table of
// connections of its own, which the kernel's NAT does not know.
func hasConnections(c *config.Config, d dataplane.Driver) bool {
	_, err := os.Stat(c.Switchyard.EBPF.PinDir)
	return d.Name == "ebpf" && err == nil
}

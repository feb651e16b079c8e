package agent

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
)

// serveInspector answers those commands in a running agent.
func (a *Agent) serveInspector(ctx context.Context, g *errgroup.Group) {
	if a.config.Switchyard.Socket == "" {
		return
	}
	backend := inspect.Backend{Name: a.backend, Asked: a.choice.Asked}
	for _, p := range a.choice.PassedOver {
		backend.PassedOver = append(backend.PassedOver, inspect.PassedOver{Name: p.Name, Reason: p.Reason.Error()})
	}
	s := &inspect.Server{
		Socket: a.config.Switchyard.Socket, HardFail: a.config.KubeProxy.BindAddressHardFail, Log: a.log,
		Inspector: inspect.Inspector{
			Version: a.version, Started: a.started, NodeName: a.watcher.NodeName(), Backend: backend, Families: a.families, Lacking: a.choice.Lacking,
			Watcher: a.watcher, Syncer: a.syncer, Health: a.healthNow, Contacts: a.contacts(), Leftovers: a.leftovers.get,
			VerifyInterval: a.config.Switchyard.VerifyInterval.Duration,
			Flows:          a.flows, Counted: a.counted(), Sockets: a.sockets(), Device: deviceTo,
		},
	}
	if a.firewall != nil {
		s.Firewall = a.firewall.State
	}
	g.Go(func() error { return s.Run(ctx) })
}

// flows are the connections through Services that conntrack has.
func (a *Agent) flows(ctx context.Context, visit func(dataplane.Flow)) error {
	for _, family := range a.families {
		if err := conntrack.Flows(ctx, family, visit); err != nil {
			return err
		}
	}
	return nil
}

// counted says which connections those are.
func (a *Agent) counted() string {
	if a.sockets() != nil {
		return "those translated packet by packet, so not those that were translated at their sockets"
	}
	return "all"
}

// sockets are those that the backend translates; nil: none.
func (a *Agent) sockets() dataplane.SocketTranslator {
	s, ok := a.opened.(dataplane.SocketTranslator)
	if !ok || s.Sockets() == nil {
		return nil
	}
	return s
}

// healthNow is what the health paths say.
func (a *Agent) healthNow() inspect.Health {
	s := a.syncer.Status()
	h := inspect.Health{Healthy: a.health.Healthy(), Ready: a.health.Ready(), Reason: a.waiting()}
	switch {
	case s.Err != nil && !h.Ready:
		h.Reason = s.Err.Error()
	case !s.Damaged.IsZero():
		h.Reason = "the kernel is not as it was programmed and is being repaired"
	}
	return h
}

// deviceTo names the device through which an address is reached.
func deviceTo(addr netip.Addr) (string, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return "", fmt.Errorf("looking for the route to %s: %w", addr, err)
	}
	for _, r := range routes {
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			return l.Attrs().Name, nil
		}
	}
	return "", fmt.Errorf("there is no route to %s", addr)
}

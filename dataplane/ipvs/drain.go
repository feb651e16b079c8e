package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
)

// drainCheck is how often endpoints that drain are looked at.
const drainCheck = 2 * time.Second

// udpGrace is how long the flows of UDP go on: they have no end to wait for, but
// the kernel forgets all of an endpoint with it, those whose answer is on its
// way too.
const udpGrace = 2 * time.Second

// draining is an endpoint that gets no new connections and keeps those it has.
type draining struct {
	service  serviceKey
	endpoint netip.AddrPort
}

// drainEndpoints takes endpoints out of a service: they get no new connections, and
// go when they have none.
func (b *backend) drainEndpoints(key serviceKey, endpoints []netip.AddrPort) error {
	if len(endpoints) == 0 {
		return nil
	}
	for _, e := range endpoints {
		if err := b.kernel.weigh(key, e, 0); err != nil {
			return err
		}
		b.drains[draining{key, e}] = b.deadline(key)
	}
	return b.settle(key)
}

// cut takes endpoints out of a service at once, and with them their connections.
func (b *backend) cut(key serviceKey, endpoints []netip.AddrPort) error {
	for _, e := range endpoints {
		if err := b.kernel.cut(key, e); err != nil {
			return err
		}
		delete(b.drains, draining{key, e})
	}
	return nil
}

// deadline returns when an endpoint that drains from now on is removed in any case.
func (b *backend) deadline(key serviceKey) time.Time {
	if key.protocol == dataplane.UDP {
		return time.Now().Add(udpGrace)
	}
	return time.Now().Add(b.options.drainTimeout())
}

// settle removes the endpoints of a service that have drained, or had the time to.
func (b *backend) settle(key serviceKey) error {
	have, err := b.kernel.destinations(key)
	if err != nil {
		return err
	}
	var errs []error
	for d, deadline := range b.drains {
		if d.service != key {
			continue
		}
		found, ok := have[d.endpoint]
		switch {
		case !ok || found.weight > 0: // gone, or somebody uses it again
		case found.connections == 0:
			errs = append(errs, b.kernel.cut(key, d.endpoint))
		case time.Now().After(deadline):
			if key.protocol != dataplane.UDP {
				b.log.Info("connections to a removed endpoint are cut: they had the time to end", "service", key.addr.String(), "endpoint", d.endpoint.String(), "connections", found.connections)
			}
			errs = append(errs, b.kernel.cut(key, d.endpoint))
		default:
			continue
		}
		delete(b.drains, d)
	}
	return errors.Join(errs...)
}

// keepDraining looks after endpoints that drain until ctx ends.
func (b *backend) keepDraining(ctx context.Context) {
	tick := time.NewTicker(drainCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		services := map[serviceKey]bool{}
		for d := range b.drains {
			services[d.service] = true
		}
		for key := range services {
			if err := b.settle(key); err != nil {
				b.log.Warn("endpoints that drain are looked at again later", "error", err)
			}
		}
		b.mu.Unlock()
	}
}

// forget forgets the endpoints of a service that is removed whole.
func (b *backend) forget(key serviceKey) {
	for d := range b.drains {
		if d.service == key {
			delete(b.drains, d)
		}
	}
}

// drainAll gives all endpoints weight 0, so that IPVS takes no new connections, and
// waits until it has none. The rules go at once: another backend's hold now, and
// these are about first packets alone. Routes and services stay until then.
func drainAll(ctx context.Context, cfg dataplane.Config) error {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return nil
	}
	k, err := openKernel(&counts{})
	if err != nil {
		return err
	}
	defer k.close()
	ours, err := k.ours()
	if err != nil || len(ours) == 0 {
		return err
	}
	if err := k.quiesce(ours); err != nil {
		return err
	}
	for _, f := range cfg.Families {
		if err := cleanupTable(newTable(f, &counts{})); err != nil {
			return err
		}
	}
	cfg.Log.Info("IPVS serves nothing new; waiting for the connections that it translates", "services", len(ours))
	if err := pause(ctx, udpGrace); err != nil {
		return err
	}
	if err := k.endUDP(ctx, cfg, ours); err != nil {
		return err
	}
	for {
		if ours, err = k.ours(); err != nil || connections(ours) == 0 {
			return err
		}
		if err := pause(ctx, drainCheck); err != nil {
			return err
		}
	}
}

// Serves reports whether the kernel has IPVS services of ours.
func Serves() (bool, error) {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	k, err := openKernel(&counts{})
	if err != nil {
		return false, err
	}
	defer k.close()
	some, err := k.ipvs.GetServices() // one dump may leave out some, not all
	if err != nil {
		return false, fmt.Errorf("reading the IPVS services: %w", err)
	}
	return slices.ContainsFunc(some, func(s *ipvs.Service) bool { return s.Timeout == ownTimeout }), nil
}

// ours returns our services as the kernel has them.
func (k *kernel) ours() (map[serviceKey]heldService, error) {
	all, err := k.read()
	for key, s := range all {
		if !s.ours {
			delete(all, key)
		}
	}
	return all, err
}

func connections(services map[serviceKey]heldService) (n int) {
	for _, s := range services {
		for _, d := range s.destinations {
			n += d.connections
		}
	}
	return n
}

// quiesce gives the endpoints of services weight 0.
func (k *kernel) quiesce(services map[serviceKey]heldService) error {
	for key, s := range services {
		for e, d := range s.destinations {
			if d.weight == 0 {
				continue
			}
			if err := k.weigh(key, e, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// endUDP ends the flows of UDP, which have no end of their own: conntrack forgets
// those that IPVS translates, so that the next datagram of each is a new flow. Their
// services go a moment later, as IPVS itself finds the way back for an answer that
// comes meanwhile, unless its flow was masqueraded.
func (k *kernel) endUDP(ctx context.Context, cfg dataplane.Config, services map[serviceKey]heldService) error {
	for _, f := range cfg.Families {
		ended, err := conntrack.EndUDP(ctx, f, func(to netip.AddrPort) bool {
			_, ok := services[serviceKey{dataplane.UDP, to}]
			return ok
		})
		if err != nil {
			return fmt.Errorf("ending the flows of UDP through IPVS: %w", err)
		}
		cfg.Log.Debug("flows of UDP through IPVS begin anew", "family", f.String(), "flows", ended)
	}
	if err := pause(ctx, udpGrace); err != nil {
		return err
	}
	for key := range services {
		if key.protocol != dataplane.UDP {
			continue
		}
		if err := k.remove(key); err != nil {
			return err
		}
	}
	return nil
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

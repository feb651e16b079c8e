package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
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

// retire takes endpoints out of a service: they get no new connections, and go
// when they have none.
func (b *backend) retire(key serviceKey, endpoints []netip.AddrPort) error {
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

// deadline is when an endpoint that drains from now on is removed in any case.
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

// drain looks after endpoints that drain until ctx ends.
func (b *backend) drain(ctx context.Context) {
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

// forget is for a service that is removed whole.
func (b *backend) forget(key serviceKey) {
	for d := range b.drains {
		if d.service == key {
			delete(b.drains, d)
		}
	}
}

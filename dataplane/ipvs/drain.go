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

// draining is an endpoint that gets no new connections and keeps those it has.
type draining struct {
	service  serviceKey
	endpoint netip.AddrPort
}

// retire takes endpoints out of a service. UDP has no end to wait for: its flows
// are cut, and their next packet gets another endpoint.
func (b *backend) retire(key serviceKey, endpoints []netip.AddrPort) error {
	if len(endpoints) == 0 {
		return nil
	}
	for _, e := range endpoints {
		var err error
		if key.protocol == dataplane.UDP {
			err = b.kernel.cut(key, e)
		} else {
			err = b.kernel.weigh(key, e, 0)
		}
		if err != nil {
			return err
		}
		if key.protocol != dataplane.UDP {
			b.drains[draining{key, e}] = time.Now().Add(b.options.drainTimeout())
		}
	}
	if key.protocol == dataplane.UDP {
		return nil
	}
	return b.settle(key)
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
			b.log.Info("connections to a removed endpoint are cut: they had the time to end", "service", key.addr.String(), "endpoint", d.endpoint.String(), "connections", found.connections)
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

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

// retire gives all endpoints weight 0, so that IPVS takes no new connections, and
// waits until it has none. The rules go at once: another backend's hold now, and
// these are about first packets alone. Routes and services stay until then.
func retire(ctx context.Context, cfg dataplane.Config) error {
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

// Serves tells whether the kernel has IPVS services of ours.
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

// ours are our services as the kernel has them.
func (k *kernel) ours() (map[serviceKey]held, error) {
	all, err := k.read()
	for key, s := range all {
		if !s.ours {
			delete(all, key)
		}
	}
	return all, err
}

func connections(services map[serviceKey]held) (n int) {
	for _, s := range services {
		for _, d := range s.destinations {
			n += d.connections
		}
	}
	return n
}

// quiesce gives the endpoints of services weight 0.
func (k *kernel) quiesce(services map[serviceKey]held) error {
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
func (k *kernel) endUDP(ctx context.Context, cfg dataplane.Config, services map[serviceKey]held) error {
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

// pause waits, or is ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

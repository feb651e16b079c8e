// Package addrs follows the addresses that are local on this node.
package addrs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

const (
	// settle is how long changes are collected before the addresses are read: a
	// pod's start brings several.
	settle = 50 * time.Millisecond
	// relist is how often they are read although nothing was heard.
	relist = time.Minute
	// retry is the pause after netlink has failed.
	retry = time.Second
	// ipvsDevice is where kube-proxy's IPVS mode binds the addresses of
	// Services. They are frontends, not addresses of the node.
	ipvsDevice = "kube-ipvs0"
)

// Follow reports what is local in the network namespace that it is called in:
// at once, and after each change. A report holds the addresses on devices and
// the destinations of local routes (`ip route show table local type local`),
// sorted, without duplicates. Routes that a backend of Switchyard or kube-proxy
// added for the addresses of Services are left out.
//
// It returns when the context ends. It logs a fault of netlink and tries again.
func Follow(ctx context.Context, log *slog.Logger, report func([]netip.Prefix)) error {
	var last []netip.Prefix
	first := true
	see := func(now []netip.Prefix) {
		if first || !slices.Equal(last, now) {
			report(now)
		}
		last, first = now, false
	}
	for {
		if err := follow(ctx, see); ctx.Err() == nil {
			log.Warn("cannot follow the node's addresses, trying again", "in", retry, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// follow reads the addresses after each change, until netlink fails or the
// context ends.
func follow(ctx context.Context, see func([]netip.Prefix)) error {
	// Subscribing before the first list lets no change fall between the two.
	changes, err := subscribe()
	if err != nil {
		return err
	}
	defer changes.close()
	reader, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	defer reader.Close()
	// The kernel then sends the routes asked for and no others. A node may have a
	// million.
	if err := reader.SetStrictCheck(true); err != nil {
		return fmt.Errorf("asking rtnetlink for strict checks: %w", err)
	}
	due := time.After(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-changes.broken:
			return fmt.Errorf("hearing of changes of addresses: %w", err)
		case <-changes.heard:
			if due == nil {
				due = time.After(settle)
			}
			continue
		case <-due:
		case <-time.After(relist):
		}
		due = nil
		now, err := list(reader)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			due = time.After(settle) // it changed while it was read, and may lack something
			continue
		}
		if err != nil {
			return err
		}
		see(now)
	}
}

// list reads the addresses and the local routes.
func list(h *netlink.Handle) ([]netip.Prefix, error) {
	ignored := 0
	if link, err := h.LinkByName(ipvsDevice); err == nil {
		ignored = link.Attrs().Index
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ok && (ignored == 0 || a.LinkIndex != ignored) {
			addr = addr.Unmap()
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
		err := h.RouteListFilteredIter(family, local, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			if p, ok := destination(r); ok && r.Type == unix.RTN_LOCAL && r.Protocol != dataplane.RouteProtocol && (ignored == 0 || r.LinkIndex != ignored) {
				out = append(out, p)
			}
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("listing local routes: %w", err)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

func destination(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(a, bits).Masked(), ok
}

// Package addrs follows the addresses that are local on this node.
package addrs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
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
		if err := followUntil(ctx, log, see); ctx.Err() == nil {
			log.Warn("cannot follow the node's addresses; trying again", "in", retry, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// followUntil reads the addresses after each change, until reading them fails or
// the context ends.
func followUntil(ctx context.Context, log *slog.Logger, see func([]netip.Prefix)) error {
	// Subscribing before the first list lets no change fall between the two.
	f, err := follow.Start(changes())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
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
	return each(ctx, log, f, func() error {
		now, err := list(reader)
		if err == nil {
			see(now)
		}
		return err
	})
}

// each calls read at once, some time after changes, and every now and then
// although nothing was heard, until it fails or the context ends.
func each(ctx context.Context, log *slog.Logger, f *follow.Follower, read func() error) error {
	for due := time.Now(); ctx.Err() == nil; {
		if heard, err := changed(ctx, f, due); heard {
			if err != nil { // the list makes up for what was missed
				log.Debug("changes of addresses were missed", "error", err)
			}
			if soon := time.Now().Add(settle); soon.Before(due) {
				due = soon
			}
			continue
		}
		if ctx.Err() != nil {
			break
		}
		due = time.Now().Add(relist)
		err := read()
		if follow.Interrupted(err) {
			due = time.Now().Add(settle) // it changed while it was read, and may lack something
		} else if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// changed waits until something is heard, or may have been missed, and no longer
// than until a time.
func changed(ctx context.Context, f *follow.Follower, until time.Time) (bool, error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	_, err := f.Next(ctx)
	return ctx.Err() == nil, err
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
			if p, ok := destination(r); ok && r.Type == unix.RTN_LOCAL && r.Protocol != dataplane.RouteProtocol &&
				(ignored == 0 || r.LinkIndex != ignored) {
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

// Package addrs is the addresses of this node, followed as they come and go.
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
)

const (
	// settle is how long the addresses must be left alone, or at most how long
	// after the first change they are read: a pod's start brings several changes.
	settle = 50 * time.Millisecond
	// relist is how often they are read anyway, should a message have been lost.
	relist = time.Minute
	// retry is the pause after netlink has failed.
	retry = time.Second
	// ipvsDevice is where kube-proxy's IPVS mode binds the addresses of
	// Services. They are frontends, not addresses of the node.
	ipvsDevice = "kube-ipvs0"
)

// Follow reports the addresses of the network namespace that it is called in,
// sorted, without zones and duplicates: at once, and after each change. It
// returns when the context ends; a fault of netlink is logged and tried again.
func Follow(ctx context.Context, log *slog.Logger, report func([]netip.Addr)) error {
	var last []netip.Addr
	first := true
	see := func(now []netip.Addr) {
		if first || !slices.Equal(last, now) {
			report(now)
		}
		last, first = now, false
	}
	for {
		if err := follow(ctx, see); ctx.Err() == nil {
			log.Warn("cannot follow the node's addresses, trying again", "in", retry, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// follow is one subscription, until it breaks or the context ends.
func follow(ctx context.Context, see func([]netip.Addr)) error {
	done := make(chan struct{})
	updates := make(chan netlink.AddrUpdate, 64)
	broken := make(chan error, 1)
	err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case broken <- err:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("subscribing to addresses: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until the subscription has seen done; it may be about to send
		}
	}()
	// The list is read after the subscription stands, so that no change falls between.
	due := time.After(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			return err
		case _, ok := <-updates:
			if !ok {
				return errors.New("the subscription to addresses ended")
			}
			if due == nil {
				due = time.After(settle)
			}
			continue
		case <-due:
		case <-time.After(relist):
		}
		due = nil
		now, err := list()
		if err != nil {
			return err
		}
		see(now)
	}
}

// attempts at a list that changes while it is read.
const attempts = 5

func list() ([]netip.Addr, error) {
	ignored := 0
	if link, err := netlink.LinkByName(ipvsDevice); err == nil {
		ignored = link.Attrs().Index
	}
	var got []netlink.Addr
	var err error
	for range attempts {
		got, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(got))
	for _, a := range got {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ok && (ignored == 0 || a.LinkIndex != ignored) {
			out = append(out, addr.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

package packet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// flags of a device, as in bpf/conn.h
const (
	devicePods  = 1
	deviceNoMAC = 2

	// deviceUnwritten marks one that has a program and is not in the map; it is
	// never written.
	deviceUnwritten = 1 << 7
)

// device is struct device of bpf/conn.h.
type device struct {
	V4, V6 [16]byte // IPv4 as ::ffff:a.b.c.d; zero: none
	MAC    [6]byte
	Flags  uint8
	_      uint8
}

// addresses are the ones that a device's packets are masqueraded with.
type addresses struct{ v4, v6 netip.Addr }

// or fills in what is missing.
func (a addresses) or(b addresses) addresses {
	if !a.v4.IsValid() {
		a.v4 = b.v4
	}
	if !a.v6.IsValid() {
		a.v6 = b.v6
	}
	return a
}

func makeDevice(l netlink.Link, a addresses, pods dataplane.LocalPods) device {
	d := device{}
	if a.v4.IsValid() {
		d.V4 = a.v4.As16()
	}
	if a.v6.IsValid() {
		d.V6 = a.v6.As16()
	}
	copy(d.MAC[:], l.Attrs().HardwareAddr)
	if isBare(l) {
		d.Flags |= deviceNoMAC
	}
	name := l.Attrs().Name
	if pods.Interface != "" && name == pods.Interface || pods.InterfacePrefix != "" && strings.HasPrefix(name, pods.InterfacePrefix) {
		d.Flags |= devicePods
	}
	return d
}

// update makes hooks and map follow the devices that are there now. One device
// that fails holds up no other.
func (p *Path) update() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing devices: %w", err)
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	primary := primaryAddresses(links, own)
	there := map[int]bool{}
	var errs []error
	for _, l := range links {
		index := l.Attrs().Index
		there[index] = true
		if err := p.write(uint32(index), makeDevice(l, own[index].or(primary), p.pods)); err != nil {
			errs = append(errs, fmt.Errorf("noting device %s: %w", l.Attrs().Name, err))
			continue
		}
		if p.attached[index] {
			continue
		}
		if err := p.hooks.attach(l); err != nil {
			if !isGone(index) {
				errs = append(errs, err)
			}
			continue
		}
		p.attached[index] = true
	}
	return errors.Join(append(errs, p.forget(there))...)
}

// isGone tells a device that went after it was listed.
func isGone(index int) bool {
	_, err := netlink.LinkByIndex(index)
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func (p *Path) write(index uint32, d device) error {
	if old, ok := p.written[index]; ok && old == d {
		return nil
	}
	if err := p.devices.Put(index, &d); err != nil {
		return err
	}
	p.written[index] = d
	return nil
}

// forget drops devices that are gone.
func (p *Path) forget(there map[int]bool) error {
	var errs []error
	for index := range p.written {
		if there[int(index)] {
			continue
		}
		if err := p.devices.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forgetting device %d: %w", index, err))
			continue
		}
		if err := p.hooks.forget(int(index)); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(p.written, index)
		delete(p.attached, int(index))
	}
	return errors.Join(errs...)
}

// readDevices learns what an agent before this one wrote, so that what is gone
// since is removed.
func (p *Path) readDevices() error {
	var index uint32
	var d device
	all := p.devices.Iterate()
	for all.Next(&index, &d) {
		p.written[index] = d
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading the devices of an earlier agent: %w", err)
	}
	if t, ok := p.hooks.(*tcx); ok {
		pinned, err := pinnedDevices(t.dir)
		if err != nil {
			return err
		}
		for _, n := range pinned {
			if _, ok := p.written[uint32(n)]; !ok {
				p.written[uint32(n)] = device{Flags: deviceUnwritten}
			}
		}
	}
	return nil
}

// ownAddresses are the addresses of each device that others can answer to: the
// first one of each family that is not of the link alone, as the kernel
// prefers it.
func ownAddresses() (map[int]addresses, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	const unfit = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	own := map[int]addresses{}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if !ok || !addr.IsGlobalUnicast() || a.Flags&unfit != 0 {
			continue
		}
		have := own[a.LinkIndex]
		switch {
		case addr.Is4() && !have.v4.IsValid():
			have.v4 = addr
		case addr.Is6(): // the kernel lists the newest first, and the oldest is the steadiest
			have.v6 = addr
		}
		own[a.LinkIndex] = have
	}
	return own, nil
}

// primaryAddresses serve devices that have no address of their own: those of
// the device that the default route leads to, or else of any.
func primaryAddresses(links []netlink.Link, own map[int]addresses) addresses {
	var primary addresses
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// What cannot be read is as if there were no default route.
		routes, _ := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		for _, r := range routes {
			primary = primary.or(own[r.LinkIndex])
		}
	}
	for _, l := range links {
		if !isLoopback(l) {
			primary = primary.or(own[l.Attrs().Index])
		}
	}
	return primary
}

// watchDevices tells of every change of a device or address, until ctx ends.
func watchDevices(ctx context.Context, log *slog.Logger) (<-chan struct{}, error) {
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	onError := func(err error) {
		if ctx.Err() == nil {
			log.Warn("watching the node's devices", "error", err)
		}
	}
	err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: onError}),
		netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: onError}),
	)
	if err != nil {
		return nil, fmt.Errorf("watching the node's devices: %w", err)
	}
	changes := make(chan struct{}, 1)
	go merge(ctx, links, addrs, changes)
	return changes, nil
}

// merge makes of any number of changes one that waits to be seen.
func merge(ctx context.Context, links <-chan netlink.LinkUpdate, addrs <-chan netlink.AddrUpdate, changes chan<- struct{}) {
	for links != nil || addrs != nil {
		var ok bool
		select {
		case <-ctx.Done():
			// The channels close when their sockets do.
			go drain(links)
			go drain(addrs)
			return
		case _, ok = <-links:
			if !ok {
				links = nil
			}
		case _, ok = <-addrs:
			if !ok {
				addrs = nil
			}
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}

// drain reads until the sender closes.
func drain[T any](ch <-chan T) {
	if ch == nil {
		return
	}
	for range ch {
	}
}

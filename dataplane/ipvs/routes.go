package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// routes are our local routes: they bring packets for a Service address to the
// hooks where IPVS is, without the address on any device. Each has a source, so
// that the node does not connect to the address from the address itself: source
// ranges and endpoints are to see the node. And each has the MTU of the node's
// way out: by the loopback device's, the node's own large datagrams would come
// to IPVS whole, which refuses what does not fit into the endpoint's device.
type routes struct {
	netlink *netlink.Handle
	lo      int // index of the loopback device
	sources map[dataplane.Family]netip.Addr
	mtus    map[dataplane.Family]int // 0: the loopback device's
	counts  *counts
}

func openRoutes(c *counts) (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("finding the loopback device: %w", err)
	}
	return &routes{netlink: h, lo: lo.Attrs().Index, sources: map[dataplane.Family]netip.Addr{}, mtus: map[dataplane.Family]int{}, counts: c}, nil
}

// findSource finds the address from which the node sends to other hosts, and
// how large its packets may be.
func (r *routes) findSource(f dataplane.Family) {
	delete(r.sources, f)
	delete(r.mtus, f)
	to, err := r.netlink.RouteGet(exampleOf(f).AsSlice())
	if err != nil || len(to) == 0 {
		return // no way out, so no matter
	}
	if a, ok := netip.AddrFromSlice(to[0].Src); ok && a.Unmap().IsGlobalUnicast() {
		r.sources[f] = a.Unmap()
	}
	if link, err := r.netlink.LinkByIndex(to[0].LinkIndex); err == nil {
		r.mtus[f] = link.Attrs().MTU
	}
}

func (r *routes) close() { r.netlink.Close() }

// read reads our routes of a family back, with whether their source and MTU are right.
func (r *routes) read(f dataplane.Family) (map[netip.Addr]bool, error) {
	out := map[netip.Addr]bool{}
	list, err := r.local(f)
	if err != nil {
		return nil, fmt.Errorf("reading the local %s routes: %w", f, err)
	}
	for _, route := range list {
		if route.Protocol != dataplane.RouteProtocol || route.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(route.Dst.IP); ok {
			source, _ := netip.AddrFromSlice(route.Src)
			out[a.Unmap()] = source.Unmap() == r.sources[f] && route.MTU == r.mtus[f]
		}
	}
	return out, nil
}

// local returns the routes of table local.
func (r *routes) local(f dataplane.Family) ([]netlink.Route, error) {
	return follow.Whole(func() ([]netlink.Route, error) {
		return r.netlink.RouteListFiltered(netlinkFamily(f), &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	})
}

func (r *routes) add(a netip.Addr) error {
	r.counts.routes++
	add := r.netlink.RouteAppend // beside one that kube-proxy's device has
	if a.Is6() {
		add = r.netlink.RouteAdd
	}
	err := add(r.route(a))
	if errors.Is(err, unix.EINVAL) { // the source is no address of the node any more
		r.findSource(dataplane.FamilyOf(a))
		err = add(r.route(a))
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the local route to %s: %w", a, err)
	}
	return nil
}

func (r *routes) remove(a netip.Addr) error {
	r.counts.routes++
	route := r.route(a)
	route.Src, route.MTU = nil, 0 // whatever they are
	if err := r.netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("removing the local route to %s: %w", a, err)
	}
	return nil
}

func (r *routes) route(a netip.Addr) *netlink.Route {
	var source net.IP
	if s := r.sources[dataplane.FamilyOf(a)]; s.IsValid() {
		source = s.AsSlice()
	}
	return &netlink.Route{
		LinkIndex: r.lo, Src: source, MTU: r.mtus[dataplane.FamilyOf(a)], Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Protocol: dataplane.RouteProtocol, Scope: netlink.SCOPE_HOST,
	}
}

// kubeProxyDevice holds Service addresses for kube-proxy, as long as it is there.
const kubeProxyDevice = "kube-ipvs0"

// taken returns the addresses that are on devices of this node, or that somebody
// else routes to it.
func (r *routes) taken() (map[netip.Addr]bool, error) {
	out := map[netip.Addr]bool{}
	links, err := follow.Whole(r.netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing the devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := follow.Whole(func() ([]netlink.Addr, error) { return r.netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing the node's addresses: %w", err)
	}
	for _, have := range list {
		if a, ok := netip.AddrFromSlice(have.IP); ok && names[have.LinkIndex] != kubeProxyDevice {
			out[a.Unmap()] = true
		}
	}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		routes, err := r.local(f)
		if err != nil {
			return nil, fmt.Errorf("listing the local %s routes: %w", f, err)
		}
		for _, route := range routes {
			if route.Type == unix.RTN_LOCAL && route.Protocol != dataplane.RouteProtocol && names[route.LinkIndex] != kubeProxyDevice {
				takeSingle(out, route.Dst)
			}
		}
	}
	return out, nil
}

func takeSingle(out map[netip.Addr]bool, to *net.IPNet) {
	if to == nil {
		return
	}
	a, ok := netip.AddrFromSlice(to.IP)
	if bits, of := to.Mask.Size(); ok && bits == of {
		out[a.Unmap()] = true
	}
}

func netlinkFamily(f dataplane.Family) int {
	if f == dataplane.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

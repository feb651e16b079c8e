package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outsideTable is the router's routing table for packets that come from
// outside: beside the main table, what was Announced.
const outsideTable = 100

// addressTime is how long a new address may take to be the host's.
const addressTime = 10 * time.Second

// The addresses of pods' gateways: link-local, the same on every veth.
const (
	podGateway4 = "169.254.1.1"
	podGateway6 = "fe80::1"
)

// hostBits is the mask of a single address.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func podCIDRs(node int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.40.%d.0/24", node)),
		netip.MustParsePrefix(fmt.Sprintf("fd40:0:0:%d::/64", node)),
	}
}

func podAddrs(node, pod int) []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.40.%d.%d", node, 10+pod)),
		netip.MustParseAddr(fmt.Sprintf("fd40:0:0:%d::%x", node, 10+pod)),
	}
}

// segment is a link between the router and a node or client; the router has
// number 1 on it, the host number 2.
type segment struct {
	net4, net6 string // formats of the first three bytes and of the /64
}

func nodeSegment(i int) segment {
	return segment{fmt.Sprintf("10.20.%d", i), fmt.Sprintf("fd20:0:0:%d", i)}
}

func clientSegment(i int) segment {
	return segment{fmt.Sprintf("10.30.%d", i), fmt.Sprintf("fd30:0:0:%d", i)}
}

func (s segment) addrs(n int) []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("%s.%d", s.net4, n)),
		netip.MustParseAddr(fmt.Sprintf("%s::%x", s.net6, n)),
	}
}

func (s segment) prefixes(n int) []netip.Prefix {
	a := s.addrs(n)
	return []netip.Prefix{netip.PrefixFrom(a[0], 24), netip.PrefixFrom(a[1], 64)}
}

// newHost makes a host's namespace, with loopback up and no process yet.
func (l *Lab) newHost(name, nodeCgroup string) (*Host, error) {
	ns, err := makeNamespace(l.Name + "-" + name)
	if err != nil {
		return nil, err
	}
	h := &Host{Name: name, Namespace: l.Name + "-" + name, ns: ns, Cgroup: subCgroup(nodeCgroup, "host-"+name), log: l.log}
	if err := h.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing %s: %w", name, err), h.remove())
	}
	return h, nil
}

// prepare sets what must be set before the first interface is there.
func (h *Host) prepare() error {
	settings := [][2]string{
		{"net.ipv4.conf.all.rp_filter", "0"}, {"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.all.send_redirects", "0"}, {"net.ipv4.conf.default.send_redirects", "0"},
		{"net.ipv6.conf.all.disable_ipv6", "0"}, {"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.default.accept_dad", "0"}, {"net.ipv6.conf.default.dad_transmits", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"}, {"net.ipv6.conf.default.router_solicitations", "0"},
		// No limit to ICMP errors: tests reject more in a second than the one to a
		// peer that kernels allow after a short burst. 127 is a type not in use.
		{"net.ipv4.icmp_ratemask", "0"}, {"net.ipv6.icmp.ratemask", "127"}, {"net.ipv6.icmp.ratelimit", "0"},
	}
	err := h.Do(func() error {
		for _, s := range settings {
			if err := sysctl(s[0], s[1]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if h.link, err = netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	lo, err := h.link.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := h.link.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// forward makes a host pass packets on.
func (h *Host) forward() error {
	return h.Do(func() error {
		return errors.Join(sysctl("net.ipv4.ip_forward", "1"), sysctl("net.ipv6.conf.all.forwarding", "1"))
	})
}

// wireNode connects node i to the router and tells the router where its pods are.
func (l *Lab) wireNode(n *Node, i int) error {
	if err := errors.Join(l.router.forward(), n.forward()); err != nil {
		return err
	}
	if err := l.wireToRouter(n.Host, "node-"+n.Name[len("node-"):], nodeSegment(i)); err != nil {
		return err
	}
	for f, cidr := range n.PodCIDRs {
		if err := l.router.addRoute(route{to: cidr, via: n.Addrs[f]}); err != nil {
			return err
		}
	}
	return nil
}

// wireClient connects outside client i; its packets are routed by the table
// for outside first, then by the main one.
func (l *Lab) wireClient(c *Host, i int) error {
	if err := l.wireToRouter(c, c.Name, clientSegment(i)); err != nil {
		return err
	}
	return l.routeLikeOutside(c.Name)
}

// routeLikeOutside makes the router send what came in by a device where packets
// from outside go.
func (l *Lab) routeLikeOutside(device string) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = family, device, outsideTable, 100
		if err := l.router.link.RuleAdd(rule); err != nil {
			return fmt.Errorf("adding the router's rule for %s: %w", device, err)
		}
	}
	return nil
}

// wireToRouter connects a host's eth0 to the router, with its default routes.
func (l *Lab) wireToRouter(h *Host, routerSide string, s segment) error {
	if err := l.router.addVeth(routerSide, h, "eth0"); err != nil {
		return err
	}
	h.Addrs = s.addrs(2)
	for f, p := range s.prefixes(1) {
		if err := l.router.AddAddress(routerSide, p); err != nil {
			return err
		}
		if err := h.AddAddress("eth0", s.prefixes(2)[f]); err != nil {
			return err
		}
	}
	if err := neighbours(l.router, routerSide, s.addrs(1), h, "eth0", h.Addrs); err != nil {
		return err
	}
	for _, gateway := range s.addrs(1) {
		if err := h.addRoute(route{via: gateway}); err != nil {
			return err
		}
	}
	return nil
}

// wirePod connects pod k of node i by a routed veth. The node's end has no
// address that a connection could come from, so that what the node opens or
// masquerades comes from the node's own address.
func (l *Lab) wirePod(n *Node, pod *Host, i, k int) error {
	device := fmt.Sprintf("%s%d", PodInterfacePrefix, k)
	if err := n.addVeth(device, pod, "eth0"); err != nil {
		return err
	}
	if err := n.AddAddress(device, netip.PrefixFrom(netip.MustParseAddr(podGateway6), 64)); err != nil {
		return err
	}
	pod.Addrs = podAddrs(i, k)
	gateways := []netip.Addr{netip.MustParseAddr(podGateway4), netip.MustParseAddr(podGateway6)}
	for f, a := range pod.Addrs {
		if err := pod.AddAddress("eth0", hostPrefix(a)); err != nil {
			return err
		}
		if err := n.addRoute(route{to: hostPrefix(a), dev: device, src: n.Addrs[f]}); err != nil {
			return err
		}
	}
	if err := neighbours(n.Host, device, gateways, pod, "eth0", pod.Addrs); err != nil {
		return err
	}
	for _, g := range gateways {
		if err := pod.addRoute(route{via: g, dev: "eth0"}); err != nil {
			return err
		}
	}
	return nil
}

// Reconnect replaces the devices between a pod and its node by new ones, as when
// a pod starts. What listens on the pod's addresses goes on.
func (l *Lab) Reconnect(pod *Host) error {
	for i, n := range l.Nodes {
		k := slices.Index(n.Pods, pod)
		if k < 0 {
			continue
		}
		device := fmt.Sprintf("%s%d", PodInterfacePrefix, k+1)
		link, err := n.link.LinkByName(device)
		if err != nil {
			return fmt.Errorf("finding %s of %s: %w", device, n.Name, err)
		}
		if err := n.link.LinkDel(link); err != nil {
			return fmt.Errorf("removing %s of %s: %w", device, n.Name, err)
		}
		return l.wirePod(n, pod, i+1, k+1)
	}
	return fmt.Errorf("%s is no pod of this lab", pod.Name)
}

// Announce makes packets from outside to a prefix (a Service's external
// address, say) go to a node, as a load balancer or BGP would. Packets that
// nodes and pods send do not follow it.
func (l *Lab) Announce(p netip.Prefix, n *Node) error {
	f := 0
	if p.Addr().Is6() {
		f = 1
	}
	return l.router.addRoute(route{to: p, via: n.Addrs[f], table: outsideTable})
}

// Withdraw ends what Announce began.
func (l *Lab) Withdraw(p netip.Prefix) error {
	if err := l.router.link.RouteDel(&netlink.Route{Table: outsideTable, Dst: ipNet(p)}); err != nil {
		return fmt.Errorf("removing the router's route to %s: %w", p, err)
	}
	return nil
}

// Connect makes a device on h that leads to a device on the peer, which may be a
// host of another lab. Their addresses are the caller's to add.
func (h *Host) Connect(device string, peer *Host, peerDevice string) error {
	return h.addVeth(device, peer, peerDevice)
}

// addVeth connects h's device to the peer's.
func (h *Host) addVeth(device string, peer *Host, peerDevice string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerDevice, PeerNamespace: netlink.NsFd(peer.ns)}
	if err := h.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("connecting %s to %s: %w", h.Name, peer.Name, err)
	}
	for _, end := range []struct {
		host   *Host
		device string
	}{{h, device}, {peer, peerDevice}} {
		link, err := end.host.link.LinkByName(end.device)
		if err != nil {
			return fmt.Errorf("finding %s of %s: %w", end.device, end.host.Name, err)
		}
		if err := end.host.link.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting %s of %s up: %w", end.device, end.host.Name, err)
		}
	}
	return nil
}

// neighbours tells both ends of a link each other's hardware address for good,
// so that no test waits for ARP or neighbour discovery.
func neighbours(h *Host, device string, addrs []netip.Addr, peer *Host, peerDevice string, peerAddrs []netip.Addr) error {
	if err := h.addNeighbours(device, peer, peerDevice, peerAddrs); err != nil {
		return err
	}
	return peer.addNeighbours(peerDevice, h, device, addrs)
}

func (h *Host) addNeighbours(device string, peer *Host, peerDevice string, addrs []netip.Addr) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	other, err := peer.link.LinkByName(peerDevice)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", peerDevice, peer.Name, err)
	}
	for _, a := range addrs {
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: other.Attrs().HardwareAddr}
		if err := h.link.NeighSet(n); err != nil {
			return fmt.Errorf("telling %s the hardware address of %s: %w", h.Name, a, err)
		}
	}
	return nil
}

// AddAddress gives a host's device one more address, ready at once.
func (h *Host) AddAddress(device string, p netip.Prefix) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	if err := h.link.AddrReplace(link, address(p)); err != nil {
		return fmt.Errorf("adding %s to %s of %s: %w", p, device, h.Name, err)
	}
	if p.Addr().Is4() || p.Addr().IsLinkLocalUnicast() {
		return nil
	}
	// The kernel adds an IPv6 address's route later, once nobody else changes devices.
	for end := time.Now().Add(Patient(addressTime)); ; time.Sleep(time.Millisecond) {
		routes, err := h.link.RouteGet(p.Addr().AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("adding %s to %s of %s: the kernel does not take it for local: %v, %w", p, device, h.Name, routes, err)
		}
	}
}

// SetMTU sets how large the packets are that a host's device sends.
func (h *Host) SetMTU(device string, mtu int) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	if err := h.link.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("setting the MTU of %s of %s to %d: %w", device, h.Name, mtu, err)
	}
	return nil
}

// RemoveAddress takes an address from a host's device.
func (h *Host) RemoveAddress(device string, p netip.Prefix) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("finding %s of %s: %w", device, h.Name, err)
	}
	if err := h.link.AddrDel(link, address(p)); err != nil {
		return fmt.Errorf("removing %s from %s of %s: %w", p, device, h.Name, err)
	}
	return nil
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// route is a route of one host; zero fields are not set.
type route struct {
	to    netip.Prefix // zero: default
	via   netip.Addr
	dev   string
	src   netip.Addr
	table int
}

func (h *Host) addRoute(r route) error {
	nl := &netlink.Route{Table: r.table, Family: unix.AF_INET}
	if r.via.Is6() || r.to.Addr().Is6() {
		nl.Family = unix.AF_INET6
	}
	if r.to.IsValid() {
		nl.Dst = ipNet(r.to)
	} else if nl.Family == unix.AF_INET6 {
		nl.Dst = ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	} else {
		nl.Dst = ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	if r.via.IsValid() {
		nl.Gw = r.via.AsSlice()
	}
	if r.src.IsValid() {
		nl.Src = r.src.AsSlice()
	}
	if r.dev != "" {
		link, err := h.link.LinkByName(r.dev)
		if err != nil {
			return fmt.Errorf("finding %s of %s: %w", r.dev, h.Name, err)
		}
		nl.LinkIndex = link.Attrs().Index
		if r.via.IsValid() {
			nl.Flags = int(netlink.FLAG_ONLINK)
		} else {
			nl.Scope = netlink.SCOPE_LINK
		}
	}
	if err := h.link.RouteReplace(nl); err != nil {
		return fmt.Errorf("adding route to %s on %s: %w", nl.Dst, h.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// closeHandles frees what the parent holds of a host's namespace.
func (h *Host) closeHandles() {
	if h.link != nil {
		h.link.Close()
		h.link = nil
	}
	if h.ns.IsOpen() {
		_ = h.ns.Close()
	}
}

// remove removes a host's namespace.
func (h *Host) remove() error {
	h.closeHandles()
	return removeNamespace(h.Namespace)
}

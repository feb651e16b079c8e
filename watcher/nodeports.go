package watcher

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Words that nodePortAddresses may hold beside CIDRs.
const (
	nodePortPrimary   = "primary"
	nodePortLocalhost = "localhost"
	nodePortAll       = "all"
)

// nodePortAddresses are the addresses where NodePorts may answer (KUBE-PROXY §1.10).
type nodePortAddresses struct {
	cidrs   []netip.Prefix // as given, and what the words but primary stand for
	primary bool
}

func parseNodePortAddresses(words []string) (nodePortAddresses, error) {
	var n nodePortAddresses
	for i, w := range words {
		switch w {
		case nodePortPrimary:
			n.primary = true
		case nodePortLocalhost:
			n.cidrs = append(n.cidrs, loopback(dataplane.IPv4), loopback(dataplane.IPv6))
		case nodePortAll:
			n.cidrs = append(n.cidrs, everything(dataplane.IPv4), everything(dataplane.IPv6))
		default:
			c, ok := facts.ParsePrefix(w)
			if !ok {
				return n, fmt.Errorf("nodePortAddresses[%d]: %q is no CIDR and none of %s, %s, %s",
					i, w, nodePortPrimary, nodePortLocalhost, nodePortAll)
			}
			n.cidrs = append(n.cidrs, c)
			continue
		}
		if slices.Contains(words[:i], w) {
			return n, fmt.Errorf("nodePortAddresses[%d]: %q is given twice", i, w)
		}
	}
	return n, nil
}

// ofFamily is what the list says of one family. A list with no CIDR of a family
// means all of it. "primary" says something of both: on a node without a
// primary address in a family, NodePorts answer nowhere in it (kube-proxy would
// open them on every address, which is not what the word asks for).
func (n nodePortAddresses) ofFamily(f dataplane.Family, nodeIPs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range n.cidrs {
		if dataplane.FamilyOf(c.Addr()) == f {
			out = append(out, c)
		}
	}
	if len(out) == 0 && !n.primary {
		return []netip.Prefix{everything(f)}
	}
	if n.primary {
		for _, a := range nodeIPs {
			if dataplane.FamilyOf(a) == f && !a.IsLoopback() {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return out
}

// choose returns Node.NodePorts: what is local on the node and covered by the
// list. If the list covers a part of a local prefix, that part is chosen.
//
// Loopback is 127.0.0.0/8 as a whole or nothing, and never ::1: packets to ::1
// cannot be sent on to another address. An IPv6 link-local address answers only
// where a CIDR of fe80::/10 names it: every pod's veth brings one, so that
// "all" would change this node's list with each pod that comes or goes, for
// addresses that no client uses.
func (n nodePortAddresses) choose(families []dataplane.Family, local []netip.Prefix, nodeIPs []netip.Addr, localhost bool) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range families {
		allowed := n.ofFamily(f, nodeIPs)
		for _, l := range local {
			if dataplane.FamilyOf(l.Addr()) != f || !takesClients(l) {
				continue
			}
			for _, c := range allowed {
				if c.Overlaps(l) && (!isIPv6LinkLocal(l) || isIPv6LinkLocal(c)) {
					out = append(out, narrower(c, l))
				}
			}
		}
		if f == dataplane.IPv4 && localhost && slices.ContainsFunc(allowed, loopback(f).Overlaps) {
			out = append(out, loopback(f))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// everywhere returns Node.Everywhere.
func (n nodePortAddresses) everywhere(families []dataplane.Family, nodeIPs []netip.Addr) []dataplane.Family {
	var out []dataplane.Family
	for _, f := range families {
		if slices.Contains(n.ofFamily(f, nodeIPs), everything(f)) {
			out = append(out, f)
		}
	}
	return out
}

// bound returns Node.Bound. IPv6 link-local addresses are left out for the
// reason that choose has, and no Service can have one.
func bound(families []dataplane.Family, local []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, l := range local {
		if slices.Contains(families, dataplane.FamilyOf(l.Addr())) && takesClients(l) && !isIPv6LinkLocal(l) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// takesClients reports whether packets from elsewhere may be sent to a local
// address or to those of a local route.
func takesClients(p netip.Prefix) bool {
	a := p.Addr()
	return !a.IsLoopback() && !a.IsMulticast() && (!a.IsUnspecified() || !p.IsSingleIP())
}

func isIPv6LinkLocal(p netip.Prefix) bool { return p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() }

// narrower returns the one of two overlapping prefixes that lies in the other.
func narrower(a, b netip.Prefix) netip.Prefix {
	if a.Bits() > b.Bits() {
		return a.Masked()
	}
	return b
}

func everything(f dataplane.Family) netip.Prefix { return netip.PrefixFrom(f.Unspecified(), 0) }

func loopback(f dataplane.Family) netip.Prefix {
	if f == dataplane.IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
	}
	return netip.PrefixFrom(netip.IPv6Loopback(), 128)
}

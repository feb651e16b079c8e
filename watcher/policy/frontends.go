package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Frontend is a place where a Service wants to answer.
type Frontend struct {
	Addr     netip.AddrPort
	Protocol dataplane.Protocol
	Kind     dataplane.Kind
	family   dataplane.Family
	port     uint16 // index into the Service's ports
}

// Port is which of the Service's ports it belongs to.
func (f Frontend) Port() int { return int(f.port) }

// Frontends lists where a Service wants to answer, by port, family, kind and
// address. It depends on nothing that changes but the Service, so that an event
// of an endpoint moves no frontend. A family without a ClusterIP has none,
// whatever else the Service has in it (§1.1).
func Frontends(svc *facts.Service, families []dataplane.Family, externalIPs bool) []Frontend {
	var out []Frontend
	for i, port := range svc.Ports {
		for _, family := range families {
			if !slices.ContainsFunc(svc.ClusterIPs, func(a netip.Addr) bool { return dataplane.FamilyOf(a) == family }) {
				continue
			}
			start := len(out)
			add := func(kind dataplane.Kind, number uint16, addrs ...netip.Addr) {
				for _, a := range addrs {
					if dataplane.FamilyOf(a) == family {
						out = append(out, Frontend{Addr: netip.AddrPortFrom(a, number), Protocol: port.Protocol,
							Kind: kind, family: family, port: uint16(i)})
					}
				}
			}
			add(dataplane.ClusterIP, port.Port, svc.ClusterIPs...)
			if externalIPs {
				add(dataplane.ExternalIP, port.Port, svc.ExternalIPs...)
			}
			add(dataplane.LoadBalancer, port.Port, svc.LoadBalancerIPs...)
			if port.NodePort != 0 {
				add(dataplane.NodePort, port.NodePort, family.Unspecified())
			}
			out = append(out[:start], unique(out[start:])...)
		}
	}
	return out
}

// unique sorts the frontends of one port and leaves one of each address. The
// ClusterIP stays before others; a load balancer's address that is also an
// external IP stays the load balancer's, so that its source ranges hold.
func unique(fs []Frontend) []Frontend {
	rank := func(k dataplane.Kind) int {
		return slices.Index([]dataplane.Kind{dataplane.ClusterIP, dataplane.LoadBalancer, dataplane.ExternalIP, dataplane.NodePort}, k)
	}
	slices.SortFunc(fs, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(rank(a.Kind), rank(b.Kind)))
	})
	fs = slices.CompactFunc(fs, func(a, b Frontend) bool { return a.Addr == b.Addr })
	slices.SortFunc(fs, func(a, b Frontend) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Addr.Compare(b.Addr)) })
	return fs
}

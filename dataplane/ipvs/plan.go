package ipvs

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// serviceKey is what an IPVS service is found by.
type serviceKey struct {
	protocol dataplane.Protocol
	addr     netip.AddrPort
}

// service is one IPVS service.
type service struct {
	key       serviceKey
	scheduler string
	endpoints []dataplane.Endpoint // shared with the Pool
}

// plan is what one ServicePort wants of the kernel.
type plan struct {
	services []service
	// elements are this ServicePort's own, with their data; of a map to chains,
	// the chain.
	elements map[nft.Element]string
	// shared are elements that other ServicePorts may want too, and chains. An
	// element of setVIPs brings a local route with it.
	shared map[nft.Element]bool
}

// env is what plans and rules depend on beside the ServicePorts.
type env struct {
	mark      uint32 // of packets to masquerade
	scheduler string // of Services that name none
	pods      dataplane.LocalPods
	ranges    []netip.Prefix // that ClusterIPs come from
	addresses []netip.Addr   // that take NodePorts, loopback apart
	localhost bool           // 127.0.0.0/8 takes NodePorts too
	// taken are addresses that somebody gave to a device of this node: what
	// else is reached there is not ours. They were read back; bound are those that
	// the Snapshot knows of.
	taken map[netip.Addr]bool
	bound []netip.Prefix
}

// see takes over what a Snapshot says of the node, in one family.
func (e *env) see(s *dataplane.Snapshot, f dataplane.Family, localhost bool) {
	e.pods, e.ranges = s.Node.LocalPods, s.ServiceCIDRs
	e.bound, e.addresses, e.localhost = nil, nil, false
	for _, p := range s.Node.Bound {
		if dataplane.FamilyOf(p.Addr()) == f {
			e.bound = append(e.bound, p)
		}
	}
	for _, p := range s.Node.NodePorts {
		switch {
		case dataplane.FamilyOf(p.Addr()) != f:
		case p.Addr().IsLoopback():
			// No kernel forwards from ::1.
			e.localhost = e.localhost || localhost && p.Addr().Is4()
		case p.IsSingleIP():
			e.addresses = append(e.addresses, p.Addr())
		}
	}
}

// samePlans reports whether plans for one env are those for another.
func (e *env) samePlans(o *env) bool {
	return e.scheduler == o.scheduler && e.localhost == o.localhost && slices.Equal(e.addresses, o.addresses) && maps.Equal(e.taken, o.taken)
}

// rebinds reports whether some Service's address has been bound on this node since
// another env, or is so no longer.
func (e *env) rebinds(o *env, ports dataplane.Ports) bool {
	if slices.Equal(e.bound, o.bound) {
		return false
	}
	for p := range ports.All() {
		for _, f := range p.Frontends {
			if f.Kind != dataplane.NodePort && e.isTaken(f.Addr.Addr()) != o.isTaken(f.Addr.Addr()) {
				return true
			}
		}
	}
	return false
}

// isTaken reports whether an address is somebody else's on this node.
func (e *env) isTaken(a netip.Addr) bool {
	return e.taken[a] || slices.Contains(e.bound, netip.PrefixFrom(a, a.BitLen()))
}

// addressesOf are the node's addresses of a family.
func (e *env) addressesOf(f dataplane.Family) []netip.Addr {
	var out []netip.Addr
	for _, a := range e.addresses {
		if dataplane.FamilyOf(a) == f {
			out = append(out, a)
		}
	}
	return out
}

// wanted is all that the kernel shall hold of a family.
type wanted struct {
	services []service
	elements map[nft.Element]string
	refs     map[nft.Element]int
}

// wantAll plans all ServicePorts of a family; number is of their affinity.
func (e *env) wantAll(f dataplane.Family, ports dataplane.Ports, number func(*dataplane.ServicePort) uint32) *wanted {
	w := &wanted{elements: map[nft.Element]string{}, refs: map[nft.Element]int{}}
	for port := range ports.All() {
		if port.ID.Family != f {
			continue
		}
		p := e.planFor(port, number(port))
		w.services = append(w.services, p.services...)
		maps.Copy(w.elements, p.elements)
		for s := range p.shared {
			w.refs[s]++
			if s.Set != setChains {
				w.elements[s] = ""
			}
		}
	}
	return w
}

// constantElements are those that no ServicePort brings.
func (e *env) constantElements(f dataplane.Family) map[nft.Element]string {
	out := map[nft.Element]string{}
	for _, a := range e.addressesOf(f) {
		out[nft.Element{Family: f, Set: setAddresses, Key: nft.AddrBytes(a)}] = ""
	}
	return out
}

// planner makes one plan.
type planner struct {
	*plan
	env  *env
	port *dataplane.ServicePort
	id   uint32 // of the ServicePort's affinity
}

// planFor is what a ServicePort wants of the kernel, whose affinity has a number.
func (e *env) planFor(port *dataplane.ServicePort, id uint32) *plan {
	p := &planner{plan: &plan{elements: map[nft.Element]string{}, shared: map[nft.Element]bool{}}, env: e, port: port, id: id}
	for _, f := range port.Frontends {
		p.frontend(f)
	}
	return p.plan
}

func (p *planner) frontend(f dataplane.Frontend) {
	place := p.place(f.Addr)
	at := []netip.Addr{f.Addr.Addr()}
	if f.Kind == dataplane.NodePort {
		at = p.env.addressesOf(p.port.ID.Family)
	} else if !p.env.isTaken(f.Addr.Addr()) {
		p.share(setVIPs, nft.AddrBytes(f.Addr.Addr()))
	}
	scheduler := p.port.Scheduler
	if scheduler == "" {
		scheduler = p.env.scheduler
	}
	for _, a := range at {
		p.services = append(p.services, service{
			key:       serviceKey{p.port.ID.Protocol, netip.AddrPortFrom(a, f.Addr.Port())},
			scheduler: scheduler,
			endpoints: f.Pool.Endpoints,
		})
	}
	p.hairpin(f.Pool)
	inside := f.Pool
	if f.Inside != nil {
		inside = f.Inside
		p.hairpin(inside)
		p.own(setInside, place, "")
	}
	// IPVS cannot take a packet from 127.0.0.1 to another host, and a NodePort that
	// no address takes has no IPVS service.
	pick := f.Inside != nil || f.Kind == dataplane.NodePort && (p.env.localhost && p.port.ID.Family == dataplane.IPv4 || len(at) == 0)
	if pick {
		p.pick(place, inside)
	}
	if p.port.Affinity > 0 {
		p.affinity(place, f.Pool)
		if pick {
			p.chained(setStickyIn, place, numbered(prefixStickyIn, p.seconds()))
			p.members(setMembersIn, place, inside)
		}
	}
	p.entry(place, f)
}

// entry is how a frontend's first packet goes on.
func (p *planner) entry(place string, f dataplane.Frontend) {
	plain := map[dataplane.SNAT]string{
		dataplane.SNATNone: setPlain, dataplane.SNATNonPods: setMasqNonPods, dataplane.SNATNode: setMasqNode, dataplane.SNATAll: setMasqAll,
	}
	if f.Inside == nil && len(f.Sources) == 0 && p.port.Affinity == 0 {
		switch {
		case len(f.Pool.Endpoints) > 0:
			p.own(plain[f.SNAT], place, "")
		case f.Pool.IfEmpty == dataplane.Drop:
			p.own(setEmptyDrop, place, "")
		default:
			p.own(setEmptyReject, place, "")
		}
		return
	}
	p.own(setSpecial, place, "")
	masquerade := map[dataplane.SNAT]string{
		dataplane.SNATNonPods: chainMarkNonPods, dataplane.SNATNode: chainMarkNode, dataplane.SNATAll: chainMark,
	}
	if f.SNAT != dataplane.SNATNone {
		p.own(setMasquerade, place, masquerade[f.SNAT])
	}
	if len(f.Pool.Endpoints) == 0 {
		p.own(setEmpty, place, verdictChain(f.Pool))
	}
	if len(f.Sources) > 0 {
		p.own(setRestricted, place, "")
	}
	for _, r := range nft.Disjoint(f.Sources) {
		p.own(setSources, place+nft.AddrBytes(r.First)+place+nft.AddrBytes(r.Last), "")
	}
}

// pick lists a pool in nftables, for packets that do not go through IPVS.
func (p *planner) pick(place string, pool *dataplane.Pool) {
	n := len(pool.Endpoints)
	if n == 0 {
		p.own(setPicks, place, verdictChain(pool))
		return
	}
	p.chained(setPicks, place, numbered(prefixPick, n))
	for i, e := range pool.Endpoints {
		p.own(setPicked, place+nft.NumberBytes(uint32(i)), nft.EndpointBytes(e.Addr))
	}
}

// affinity lists what keeps clients with their endpoints.
func (p *planner) affinity(place string, pool *dataplane.Pool) {
	id := nft.NumberBytes(p.id)
	p.own(setIDs, place, id)
	p.chained(setSticky, place, numbered(prefixSticky, p.seconds()))
	p.chained(setLearn, id, numbered(prefixLearn, p.seconds()))
	p.members(setMembers, place, pool)
}

func (p *planner) seconds() int { return int(p.port.Affinity / time.Second) }

// members lists the endpoints of a pool by their numbers.
func (p *planner) members(set, place string, pool *dataplane.Pool) {
	for _, e := range pool.Endpoints {
		p.own(set, place+nft.NumberBytes(nft.EndpointNumber(e.Addr)), nft.EndpointBytes(e.Addr))
	}
}

// hairpin lists the endpoints that may be on this node, and so reach themselves.
func (p *planner) hairpin(pool *dataplane.Pool) {
	for _, e := range pool.Endpoints {
		if e.MayBeHere() {
			p.share(setHairpin, nft.AddrBytes(e.Addr.Addr())+p.place(e.Addr))
		}
	}
}

func (p *planner) own(set, key, data string) {
	p.elements[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = data
}

func (p *planner) share(set, key string) {
	p.shared[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = true
}

// chained is own for an element that leads to a chain which comes and goes.
func (p *planner) chained(set, key, chain string) {
	p.own(set, key, chain)
	p.share(setChains, chain)
}

func (p *planner) place(a netip.AddrPort) string {
	return nft.PlaceBytes(a.Addr(), p.port.ID.Protocol, a.Port())
}

func verdictChain(pool *dataplane.Pool) string {
	if pool.IfEmpty == dataplane.Drop {
		return chainDrop
	}
	return chainReject
}

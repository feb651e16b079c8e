package ipvs

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// serviceKey is what an IPVS service is found by.
type serviceKey struct {
	protocol dataplane.Protocol
	addr     netip.AddrPort
}

func (k serviceKey) String() string { return fmt.Sprintf("the IPVS service %s %s", k.protocol, k.addr) }

// service is one IPVS service.
type service struct {
	key       serviceKey
	scheduler string
	endpoints []dataplane.Endpoint // shared with the Pool
}

// plan is what the kernel shall hold of one ServicePort. A shared element of
// setVIPs brings a local route with it.
type plan struct {
	nft.Plan
	services []service
}

// planner makes one plan.
type planner struct {
	plan
	node *node
	port *dataplane.ServicePort
	id   uint32 // of the ServicePort's affinity
}

// planFor returns what the kernel shall hold of a ServicePort. id is its number if it
// has affinity.
func (n *node) planFor(port *dataplane.ServicePort, id uint32) *plan {
	p := &planner{plan: plan{Plan: nft.NewPlan()}, node: n, port: port, id: id}
	for _, f := range port.Frontends {
		p.frontend(f)
	}
	return &p.plan
}

func (p *planner) frontend(f dataplane.Frontend) {
	place := p.place(f.Addr)
	at := []netip.Addr{f.Addr.Addr()}
	if f.Kind == dataplane.NodePort {
		at = p.node.addresses
	} else if !p.node.isTaken(f.Addr.Addr()) {
		p.share(setVIPs, nft.AddrBytes(f.Addr.Addr()))
	}
	scheduler := p.port.Scheduler
	if scheduler == "" {
		scheduler = p.node.scheduler
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
		p.put(setInside, place, "")
	}
	// IPVS cannot take a packet from 127.0.0.1 to another host, and a NodePort that
	// no address takes has no IPVS service.
	pick := f.Inside != nil || f.Kind == dataplane.NodePort && (p.node.localhost || len(at) == 0)
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
	p.lead(place, f)
}

// lead says how a frontend's first packet goes on.
func (p *planner) lead(place string, f dataplane.Frontend) {
	plain := map[dataplane.SNAT]string{
		dataplane.SNATNone: setPlain, dataplane.SNATNonPods: setMasqNonPods, dataplane.SNATNode: setMasqNode, dataplane.SNATAll: setMasqAll,
	}
	if f.Inside == nil && len(f.Sources) == 0 && p.port.Affinity == 0 {
		switch {
		case len(f.Pool.Endpoints) > 0:
			p.put(plain[f.SNAT], place, "")
		case f.Pool.IfEmpty == dataplane.Drop:
			p.put(setEmptyDrop, place, "")
		default:
			p.put(setEmptyReject, place, "")
		}
		return
	}
	p.put(setSpecial, place, "")
	masquerade := map[dataplane.SNAT]string{
		dataplane.SNATNonPods: chainMarkNonPods, dataplane.SNATNode: chainMarkNode, dataplane.SNATAll: chainMark,
	}
	if f.SNAT != dataplane.SNATNone {
		p.put(setMasquerade, place, masquerade[f.SNAT])
	}
	if len(f.Pool.Endpoints) == 0 {
		p.put(setEmpty, place, verdictChain(f.Pool))
	}
	if len(f.Sources) > 0 {
		p.put(setRestricted, place, "")
	}
	for _, r := range nft.Disjoint(f.Sources) {
		p.put(setSources, place+nft.AddrBytes(r.First)+place+nft.AddrBytes(r.Last), "")
	}
}

// pick lists a pool in nftables, for packets that do not go through IPVS.
func (p *planner) pick(place string, pool *dataplane.Pool) {
	n := len(pool.Endpoints)
	if n == 0 {
		p.put(setPicks, place, verdictChain(pool))
		return
	}
	p.chained(setPicks, place, numbered(prefixPick, n))
	for i, e := range pool.Endpoints {
		p.put(setPicked, place+nft.NumberBytes(uint32(i)), nft.EndpointBytes(e.Addr))
	}
}

// affinity lists what keeps clients with their endpoints.
func (p *planner) affinity(place string, pool *dataplane.Pool) {
	id := nft.NumberBytes(p.id)
	p.put(setIDs, place, id)
	p.chained(setSticky, place, numbered(prefixSticky, p.seconds()))
	p.chained(setLearn, id, numbered(prefixLearn, p.seconds()))
	p.members(setMembers, place, pool)
}

func (p *planner) seconds() int { return int(p.port.Affinity / time.Second) }

// members lists the endpoints of a pool by their numbers.
func (p *planner) members(set, place string, pool *dataplane.Pool) {
	for _, e := range pool.Endpoints {
		p.put(set, place+nft.NumberBytes(nft.EndpointNumber(e.Addr)), nft.EndpointBytes(e.Addr))
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

func (p *planner) put(set, key, data string) {
	p.Own[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = data
}

func (p *planner) share(set, key string) {
	p.Shared[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = ""
}

// chained puts an element that leads to a chain, which exists while something needs it.
func (p *planner) chained(set, key, chain string) {
	p.put(set, key, chain)
	p.share(nft.Chains, chain)
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

// Flags that mean to each scheduler what it likes (IP_VS_SVC_F_SCHED1 and the next).
const (
	flagFallback   = 0x08 // of mh and sh: an endpoint of weight 0 is passed over
	flagPort       = 0x10 // of mh and sh: the client's port counts too
	schedulerFlags = 0x38
)

// flagsOf returns the flags of a service with a scheduler. Those that hash give a
// client whose endpoint drains none at all, if they are not told to go on. mh looks
// at the client's port as well, as kube-proxy has it.
func flagsOf(scheduler string) uint32 {
	switch scheduler {
	case "mh":
		return flagFallback | flagPort
	case "sh":
		return flagFallback
	default:
		return 0
	}
}

// canDrain reports whether a scheduler passes over endpoints of weight 0. dh does
// not, and has no flag for it: it gives all clients of an address the same
// endpoint, and none if that has weight 0.
func canDrain(scheduler string) bool { return scheduler != "dh" }

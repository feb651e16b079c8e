package nftables

import (
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// planner makes one plan after the other. The zero value is ready.
type planner struct {
	nft.Plan
	port *dataplane.ServicePort
	id   uint32
}

// plan returns what the table shall hold of a ServicePort, until it is called again.
// id is the ServicePort's number if it has affinity.
func (p *planner) plan(port *dataplane.ServicePort, id uint32) *nft.Plan {
	p.Reset()
	p.port, p.id = port, id
	for _, f := range port.Frontends {
		p.frontend(f)
	}
	return &p.Plan
}

// frontend lists what one frontend wants.
func (p *planner) frontend(f dataplane.Frontend) {
	at := placed{planner: p}
	if at.place, at.node = placeOf(p.port, f); at.node {
		at.flag = wayNode
	}
	if f.Kind == dataplane.ClusterIP {
		p.share(setClusterIPs, nft.AddrBytes(f.Addr.Addr()), "")
	}
	pool := at.pool(setEndpoints, f.Pool)
	if f.Inside == nil && len(f.Sources) == 0 && p.port.Affinity == 0 {
		at.lead(setFrontends, setWays, pool, masquerading(f.SNAT))
	} else {
		at.lead(setFrontends, setWays, waySpecial|at.flag, masquerading(f.SNAT))
		at.lead(setOutside, setPools, pool, 0)
	}
	if f.Inside != nil {
		at.lead(setInside, setPools, at.pool(setInsideOnes, f.Inside), 0)
	}
	if len(f.Sources) > 0 {
		at.put(setRestricted, "", "")
	}
	for _, r := range nft.Disjoint(f.Sources) {
		p.put(on(at.node, setSources), at.place+nft.AddrBytes(r.First)+at.place+nft.AddrBytes(r.Last), "")
	}
	if p.port.Affinity > 0 {
		at.affinity(f)
	}
}

// placeOf returns where a frontend is, and whether that is a NodePort's place.
func placeOf(port *dataplane.ServicePort, f dataplane.Frontend) (place string, node bool) {
	if f.Kind == dataplane.NodePort {
		return nft.NodePlaceBytes(port.ID.Protocol, f.Addr.Port()), true
	}
	return nft.PlaceBytes(f.Addr.Addr(), port.ID.Protocol, f.Addr.Port()), false
}

// placed is a planner at one frontend's place.
type placed struct {
	*planner
	place string
	node  bool
	flag  way // wayNode or 0
}

// pool lists a pool's endpoints in a map and returns the way to them.
func (p *placed) pool(set string, pool *dataplane.Pool) way {
	switch {
	case len(pool.Endpoints) > 0:
	case pool.IfEmpty == dataplane.Drop:
		return wayDrop
	default:
		return wayReject
	}
	for i, e := range pool.Endpoints {
		p.put(set, nft.NumberBytes(uint32(i)), nft.EndpointBytes(e.Addr))
		if e.MayBeHere() {
			a := nft.AddrBytes(e.Addr.Addr())
			p.share(setHairpin, a+a, "")
		}
	}
	return wayPick | way(len(pool.Endpoints))
}

// lead has the place go a way, by a map of places to ways and one of ways to
// chains. With the former is what only the place says.
func (p *placed) lead(places, ways string, w, only way) {
	p.put(places, "", (w | only).bytes())
	p.chain(ways, w.bytes(), w.chain())
}

// affinity lists what keeps clients with their endpoints.
func (p *placed) affinity(f dataplane.Frontend) {
	w := waySticky | p.flag | way(p.port.Affinity/time.Second)
	id := nft.NumberBytes(p.id)
	p.put(setSticky, "", w.bytes())
	p.put(setIDs, "", id)
	p.chain(setStickyWays, w.bytes(), w.chain())
	p.chain(setLearn, id, (w & wayCount).numbered(prefixLearn))
	p.share(nft.Chains, chainLearn, "")
	p.share(nft.Chains, chainLearnOut, "")
	p.members(setMembers, f.Pool)
	if f.Inside != nil {
		p.chain(setStickyIn, w.bytes(), (w | wayIn).chain())
		p.members(setMembersIn, f.Inside)
	}
}

// members lists the endpoints of a pool by their numbers.
func (p *placed) members(set string, pool *dataplane.Pool) {
	for _, e := range pool.Endpoints {
		p.put(set, nft.NumberBytes(nft.EndpointNumber(e.Addr)), nft.EndpointBytes(e.Addr))
	}
}

// put wants an element of a set of places.
func (p *placed) put(set, more, data string) {
	p.planner.put(on(p.node, set), p.place+more, data)
}

// chain has a number lead to a chain, which exists while something leads to it.
func (p *planner) chain(ways, key, chain string) {
	p.share(ways, key, chain)
	if isOptional(chain) {
		p.share(nft.Chains, chain, "")
	}
}

func (p *planner) put(set, key, data string) {
	p.Own[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = data
}

func (p *planner) share(set, key, data string) {
	p.Shared[nft.Element{Family: p.port.ID.Family, Set: set, Key: key}] = data
}

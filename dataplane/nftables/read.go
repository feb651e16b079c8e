package nftables

import (
	"net/netip"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// observe makes frontends of what a family's table holds.
func observe(f dataplane.Family, state *nft.State) []dataplane.ObservedFrontend {
	if !state.Whole() {
		return nil // something of what every connection needs is missing
	}
	o := &observer{family: f, elements: state.Elements}
	var out []dataplane.ObservedFrontend
	for e, data := range state.Elements {
		for _, node := range []bool{false, true} {
			if e.Set == on(node, setFrontends) {
				out = append(out, o.frontend(e.Key, node, wayOf(data)))
			}
		}
	}
	return out
}

type observer struct {
	family   dataplane.Family
	elements map[nft.Element]string
}

// frontend returns what happens to connections to one place.
func (o *observer) frontend(place string, node bool, w way) dataplane.ObservedFrontend {
	var f dataplane.ObservedFrontend
	if node {
		protocol, port := nft.NodePlaceOf(place)
		f.Protocol, f.Addr = protocol, netip.AddrPortFrom(o.family.Unspecified(), port)
	} else {
		addr, protocol, port := nft.PlaceOf(place, o.family)
		f.Protocol, f.Addr = protocol, netip.AddrPortFrom(addr, port)
	}
	if w&kindMask != waySpecial {
		f.Pool = o.pool(place, node, setEndpoints, setWays, w&^snatMask)
		f.Inside = f.Pool
		return f
	}
	if data, ok := o.at(on(node, setOutside), place); ok {
		f.Pool = o.pool(place, node, setEndpoints, setPools, wayOf(data))
	}
	f.Inside = f.Pool
	if data, ok := o.at(on(node, setInside), place); ok {
		f.Inside = o.pool(place, node, setInsideOnes, setPools, wayOf(data))
	}
	return f
}

// pool returns where a way leads.
func (o *observer) pool(place string, node bool, endpoints, ways string, w way) dataplane.ObservedPool {
	var pool dataplane.ObservedPool
	if chain, ok := o.at(ways, w.bytes()); !ok || chain != w.chain() {
		return pool
	}
	switch w & kindMask {
	case wayDrop:
		pool.IfEmpty = dataplane.Drop
	case wayPick:
		for i := range uint32(w & wayCount) {
			if to, ok := o.at(on(node, endpoints), place+nft.NumberBytes(i)); ok {
				pool.Endpoints = append(pool.Endpoints, nft.EndpointOf(to, o.family))
			}
		}
	}
	return pool
}

func (o *observer) at(set, key string) (string, bool) {
	data, ok := o.elements[nft.Element{Family: o.family, Set: set, Key: key}]
	return data, ok
}

package ipvs

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// Observe reads tables, services and routes back, and compares all of them with
// what they should hold where that is known.
func (b *backend) Observe(_ context.Context) (*dataplane.Observation, error) {
	b.watch.tables.Seen()
	all, err := b.reader.readCommon()
	if err != nil {
		return nil, err
	}
	out := &dataplane.Observation{Whole: true}
	for _, h := range b.halves {
		if b.Rests(h.family) {
			continue
		}
		have, err := h.read(b.reader, h.reader, all)
		if err != nil {
			return nil, err
		}
		reached := maps.Clone(have.taken)
		for a := range have.routes { // whatever its source
			reached[a] = true
		}
		o := &observer{family: h.family, elements: have.table.Elements, services: have.services, reached: reached}
		o.frontends(out)
		noted := h.noted.Load() // a Sync may have ended since
		if noted == nil {
			out.Whole = false
			continue
		}
		drift, err := noted.drift(have)
		if err != nil {
			return nil, err
		}
		out.Other = append(out.Other, drift...)
	}
	slices.Sort(out.Other)
	out.Sort()
	return out, nil
}

// observer makes frontends of one family's kernel objects.
type observer struct {
	family   dataplane.Family
	elements map[nft.Element]string
	services map[serviceKey]held
	reached  map[netip.Addr]bool // addresses whose packets come to IPVS
	nodes    []netip.Addr        // addresses that take NodePorts
}

func (o *observer) frontends(out *dataplane.Observation) {
	for e := range o.elements {
		if e.Set == setAddresses {
			o.nodes = append(o.nodes, nft.AddrOf(e.Key))
		}
	}
	for e := range o.elements {
		if !isFrontends(e.Set) {
			continue
		}
		if f, ok := o.frontend(e.Set, e.Key); ok {
			out.Frontends = append(out.Frontends, f)
		}
	}
}

// frontend is what happens to connections to one place; false: nothing.
func (o *observer) frontend(set, place string) (dataplane.ObservedFrontend, bool) {
	addr, protocol, port := nft.PlaceOf(place, o.family)
	f := dataplane.ObservedFrontend{Protocol: protocol, Addr: netip.AddrPortFrom(addr, port)}
	at := []netip.Addr{addr}
	if addr.IsUnspecified() {
		at = o.nodes
	} else if !o.reached[addr] {
		return f, false
	}
	picked, picks := o.picked(place)
	chain, empty := o.elements[nft.Element{Family: o.family, Set: setEmpty, Key: place}]
	switch {
	case set == setEmptyReject:
	case set == setEmptyDrop, empty && chain == chainDrop:
		f.Pool.IfEmpty = dataplane.Drop
	case empty:
	case len(at) == 0 && picks:
		f.Pool = picked
	default:
		f.Pool.Endpoints = o.serving(protocol, at, port)
	}
	f.Inside = f.Pool
	if o.has(setInside, place) {
		f.Inside = picked
	}
	return f, true
}

func (o *observer) has(set, key string) bool {
	_, ok := o.elements[nft.Element{Family: o.family, Set: set, Key: key}]
	return ok
}

// picked is the pool that is picked from without IPVS, if there is one.
func (o *observer) picked(place string) (dataplane.ObservedPool, bool) {
	chain, ok := o.elements[nft.Element{Family: o.family, Set: setPicks, Key: place}]
	var pool dataplane.ObservedPool
	if chain == chainDrop {
		pool.IfEmpty = dataplane.Drop
	}
	for i := range numberOf(chain, prefixPick) {
		if to, ok := o.elements[nft.Element{Family: o.family, Set: setPicked, Key: place + nft.NumberBytes(uint32(i))}]; ok {
			pool.Endpoints = append(pool.Endpoints, nft.EndpointOf(to, o.family))
		}
	}
	return pool, ok
}

// serving are the endpoints that get new connections at each of some addresses.
func (o *observer) serving(protocol dataplane.Protocol, at []netip.Addr, port uint16) []netip.AddrPort {
	count := map[netip.AddrPort]int{}
	for _, a := range at {
		for e, d := range o.services[serviceKey{protocol, netip.AddrPortFrom(a, port)}].destinations {
			if d.weight > 0 {
				count[e]++
			}
		}
	}
	var out []netip.AddrPort
	for e, n := range count {
		if n == len(at) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

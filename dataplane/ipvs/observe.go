package ipvs

import (
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Observe reads tables, services and routes back, and compares all of them with
// what they should hold where that is known.
func (b *backend) Observe(_ context.Context) (*dataplane.Observation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	have, err := b.read()
	if err != nil {
		return nil, err
	}
	out := &dataplane.Observation{}
	for _, t := range b.tables {
		reached := maps.Clone(have.taken)
		for a := range have.routes[t.family] { // whatever its source
			reached[a] = true
		}
		o := &observer{family: t.family, elements: have.tables[t.family].elements, services: have.services, reached: reached}
		o.frontends(out)
	}
	if b.held != nil {
		if out.Other, err = b.drift(have); err != nil {
			return nil, err
		}
		out.Whole = true
	}
	out.Sort()
	return out, nil
}

// observer makes frontends of one family's kernel objects.
type observer struct {
	family   dataplane.Family
	elements map[element]string
	services map[serviceKey]held
	reached  map[netip.Addr]bool // addresses whose packets come to IPVS
	nodes    []netip.Addr        // addresses that take NodePorts
}

func (o *observer) frontends(out *dataplane.Observation) {
	for e := range o.elements {
		if e.set == setAddresses {
			o.nodes = append(o.nodes, addrOf(e.key))
		}
	}
	for e := range o.elements {
		if !isFrontends(e.set) {
			continue
		}
		if f, ok := o.frontend(e.set, e.key); ok {
			out.Frontends = append(out.Frontends, f)
		}
	}
}

// frontend is what happens to connections to one place; false: nothing.
func (o *observer) frontend(set, place string) (dataplane.ObservedFrontend, bool) {
	addr, protocol, port := placeOf(place, o.family)
	f := dataplane.ObservedFrontend{Protocol: protocol, Addr: netip.AddrPortFrom(addr, port)}
	at := []netip.Addr{addr}
	if addr.IsUnspecified() {
		at = o.nodes
	} else if !o.reached[addr] {
		return f, false
	}
	picked, picks := o.picked(place)
	chain, empty := o.elements[element{o.family, setEmpty, place}]
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
	_, ok := o.elements[element{o.family, set, key}]
	return ok
}

// picked is the pool that is picked from without IPVS, if there is one.
func (o *observer) picked(place string) (dataplane.ObservedPool, bool) {
	chain, ok := o.elements[element{o.family, setPicks, place}]
	var pool dataplane.ObservedPool
	if chain == chainDrop {
		pool.IfEmpty = dataplane.Drop
	}
	for i := range numberOf(chain, prefixPick) {
		if to, ok := o.elements[element{o.family, setPicked, place + numberBytes(uint32(i))}]; ok {
			pool.Endpoints = append(pool.Endpoints, endpointFrom(to, o.family))
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

// placeOf reads what placeBytes wrote.
func placeOf(place string, f dataplane.Family) (netip.Addr, dataplane.Protocol, uint16) {
	n := addrLen(f)
	if len(place) < n+8 {
		return netip.Addr{}, 0, 0
	}
	return addrOf(place[:n]), dataplane.Protocol(place[n]), binary.BigEndian.Uint16([]byte(place[n+4:]))
}

// endpointFrom reads what endpointBytes wrote.
func endpointFrom(s string, f dataplane.Family) netip.AddrPort {
	n := addrLen(f)
	if len(s) < n+2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addrOf(s[:n]), binary.BigEndian.Uint16([]byte(s[n:])))
}

func addrLen(f dataplane.Family) int {
	if f == dataplane.IPv4 {
		return 4
	}
	return 16
}

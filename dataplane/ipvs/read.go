package ipvs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/ipvs"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// common is what both families need of the kernel, read back once.
type common struct {
	taken    map[netip.Addr]bool // addresses of the node's devices
	services map[serviceKey]heldService
}

func (k *kernel) readCommon() (*common, error) {
	taken, err := k.routes.taken()
	if err != nil {
		return nil, err
	}
	services, err := k.read()
	if err != nil {
		return nil, err
	}
	return &common{taken, services}, nil
}

// held is what the kernel holds of a family, read back once.
type held struct {
	*common
	table  *nft.State
	routes map[netip.Addr]bool // ours, and whether they are right
}

// ofFamily reads the rest of it back.
func (c *common) ofFamily(k *kernel, t *nft.Table) (*held, error) {
	h := &held{common: c}
	var err error
	if h.table, err = t.Read(); err != nil {
		return nil, err
	}
	// A table without one of its sets or base chains is made anew.
	h.table.Strange = !h.table.Whole() || missesHook(h.table)
	k.routes.findSource(t.Family)
	h.routes, err = k.routes.read(t.Family)
	return h, err
}

// missesHook reports whether a base chain is not there.
func missesHook(state *nft.State) bool {
	for name := range hooks() {
		if _, ok := state.Chains[name]; !ok {
			return true
		}
	}
	return false
}

// heldService is an IPVS service as the kernel has it.
type heldService struct {
	scheduler    string
	flags        uint32 // of the scheduler
	ours         bool
	destinations map[netip.AddrPort]destination
}

// destination is an endpoint of it.
type destination struct {
	weight      int
	connections int // of all states
}

// read reads all services back: dumps, and one file that has the endpoints of
// most of them.
func (k *kernel) read() (map[serviceKey]heldService, error) {
	services, err := k.services()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/thread-self/net/ip_vs")
	if err != nil {
		return nil, fmt.Errorf("reading the IPVS endpoints: %w", err)
	}
	endpoints, err := parseTable(string(text))
	if err != nil {
		return nil, err
	}
	out := make(map[serviceKey]heldService, len(services))
	for key, s := range services {
		destinations, ok := endpoints[key]
		if !ok { // it came between the two, or the file leaves it out, too
			if destinations, err = k.destinations(key); err != nil {
				return nil, err
			}
		}
		out[key] = heldService{scheduler: s.SchedName, flags: s.Flags & schedulerFlags, ours: s.Timeout == ownTimeout, destinations: destinations}
	}
	return out, nil
}

const (
	// sameDumps is how many dumps that bring nothing new end the search: what one
	// leaves out at the end of a part the next one may, too. There are more once a
	// dump was seen to leave something out.
	sameDumps      = 2
	sameDumpsShort = 4
	mostDumps      = 15
)

// services returns all that there are. A dump comes in parts, and where one ends the
// kernel keeps count of the services of all network namespaces: when other ones
// change meanwhile it leaves out some of ours (Linux 6.12,
// ip_vs_genl_dump_services). So it is done again until it brings nothing new;
// should it leave out one each time, the next repair finds it.
func (k *kernel) services() (map[serviceKey]*ipvs.Service, error) {
	all := map[serviceKey]*ipvs.Service{}
	enough := sameDumps
	for i, same := 0, 0; i < mostDumps && same < enough; i++ {
		list, err := k.ipvs.GetServices()
		k.counts.messages++
		if err != nil {
			return nil, fmt.Errorf("reading the IPVS services: %w", err)
		}
		before, ours := len(all), 0
		for _, s := range list {
			if key, ok := keyOf(s); ok { // else by firewall mark: not ours
				all[key] = s
				ours++
			}
		}
		if i > 0 && len(all) > before || ours < len(all) {
			enough = sameDumpsShort
		}
		if same++; i == 0 || len(all) > before {
			same = 0
		}
	}
	return all, nil
}

// destinations reads one service's endpoints.
func (k *kernel) destinations(key serviceKey) (map[netip.AddrPort]destination, error) {
	list, err := k.ipvs.GetDestinations(virtual(key, ""))
	k.counts.messages++
	if err != nil {
		return nil, fmt.Errorf("reading the endpoints of %s: %w", key, err)
	}
	out := make(map[netip.AddrPort]destination, len(list))
	for _, d := range list {
		if a, ok := netip.AddrFromSlice(d.Address); ok {
			out[netip.AddrPortFrom(a.Unmap(), d.Port)] = destination{d.Weight, d.ActiveConnections + d.InactiveConnections}
		}
	}
	return out, nil
}

func keyOf(s *ipvs.Service) (serviceKey, bool) {
	a, ok := netip.AddrFromSlice(s.Address)
	if s.FWMark != 0 || !ok {
		return serviceKey{}, false
	}
	return serviceKey{dataplane.Protocol(s.Protocol), netip.AddrPortFrom(a.Unmap(), s.Port)}, true
}

// parseTable reads /proc/net/ip_vs, which has the endpoints of all services in
// one file, where netlink has a request for each service.
//
//	Prot LocalAddress:Port Scheduler Flags
//	  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
//	TCP  0A600001:0050 rr
//	  -> 0AF40001:1F90      Masq    1      0          0
//	TCP  [fd96:0000:0000:0000:0000:0000:0000:0001]:0050 rr
func parseTable(text string) (map[serviceKey]map[netip.AddrPort]destination, error) {
	out := map[serviceKey]map[netip.AddrPort]destination{}
	var of map[netip.AddrPort]destination // nil: of a service that cannot be ours
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] == "IP" || words[0] == "Prot" || words[1] == "RemoteAddress:Port" {
			continue
		}
		if words[0] != "->" {
			of = nil
			protocol, ok := map[string]dataplane.Protocol{"TCP": dataplane.TCP, "UDP": dataplane.UDP, "SCTP": dataplane.SCTP}[words[0]]
			if !ok {
				continue // FWM
			}
			a, err := parseAddrPort(words[1])
			if err != nil {
				return nil, fmt.Errorf("reading the IPVS endpoints: %q: %w", strings.TrimSpace(line), err)
			}
			of = map[netip.AddrPort]destination{}
			out[serviceKey{protocol, a}] = of
			continue
		}
		if of == nil {
			continue
		}
		a, d, err := parseDestination(words)
		if err != nil {
			return nil, fmt.Errorf("reading the IPVS endpoints: %q: %w", strings.TrimSpace(line), err)
		}
		of[a] = d
	}
	return out, nil
}

func parseDestination(words []string) (netip.AddrPort, destination, error) {
	if len(words) < 6 {
		return netip.AddrPort{}, destination{}, fmt.Errorf("it has %d words; 6 are known", len(words))
	}
	a, err := parseAddrPort(words[1])
	if err != nil {
		return a, destination{}, err
	}
	var n [3]int
	for i, w := range words[3:6] {
		if n[i], err = strconv.Atoi(w); err != nil {
			return a, destination{}, err
		}
	}
	return a, destination{weight: n[0], connections: n[1] + n[2]}, nil
}

// parseAddrPort reads an address and port in hexadecimal.
func parseAddrPort(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if text, ok := strings.CutPrefix(s[:i], "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(text, "]"))
		return netip.AddrPortFrom(a, uint16(port)), err
	}
	b, err := hex.DecodeString(s[:i])
	if err != nil || len(b) != 4 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s[:i])
	}
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(b))
	return netip.AddrPortFrom(netip.AddrFrom4(four), uint16(port)), nil
}

// observe makes frontends of what the kernel holds of a family.
func observe(f dataplane.Family, held *held) []dataplane.ObservedFrontend {
	o := &observer{family: f, elements: held.table.Elements, services: held.services, reached: maps.Clone(held.taken)}
	for a := range held.routes { // whatever its source
		o.reached[a] = true
	}
	for e := range o.elements {
		if e.Set == setAddresses {
			o.nodes = append(o.nodes, nft.AddrOf(e.Key))
		}
	}
	var out []dataplane.ObservedFrontend
	for e := range o.elements {
		if !isFrontends(e.Set) {
			continue
		}
		if f, ok := o.frontend(e.Set, e.Key); ok {
			out = append(out, f)
		}
	}
	return out
}

type observer struct {
	family   dataplane.Family
	elements map[nft.Element]string
	services map[serviceKey]heldService
	reached  map[netip.Addr]bool // addresses whose packets come to IPVS
	nodes    []netip.Addr        // addresses that take NodePorts
}

// frontend returns what happens to connections to one place; false: nothing.
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

// picked returns the pool that is picked from without IPVS, if there is one.
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

// serving returns the endpoints that get new connections at each of some addresses.
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

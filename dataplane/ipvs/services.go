package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// held is an IPVS service as the kernel has it.
type held struct {
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

// kernel is IPVS and our routes in this network namespace. One goroutine at a time
// uses it.
type kernel struct {
	ipvs   *ipvs.Handle
	routes *routes
	counts *counts
	own    atomic.Int64 // services that were made, less those that were removed
}

// read reads all services back: dumps, and one file that has the endpoints of
// most of them.
func (k *kernel) read() (map[serviceKey]held, error) {
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
	out := make(map[serviceKey]held, len(services))
	for key, s := range services {
		destinations, ok := endpoints[key]
		if !ok { // it came between the two, or the file leaves it out, too
			if destinations, err = k.destinations(key); err != nil {
				return nil, err
			}
		}
		out[key] = held{scheduler: s.SchedName, flags: s.Flags & schedulerFlags, ours: s.Timeout == ownTimeout, destinations: destinations}
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

// services are all that there are. A dump comes in parts, and where one ends the
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

func (k serviceKey) String() string { return fmt.Sprintf("the IPVS service %s %s", k.protocol, k.addr) }

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

// drains reports whether a scheduler passes over endpoints of weight 0. dh does
// not, and has no flag for it: it gives all clients of an address the same
// endpoint, and none if that has weight 0.
func drains(scheduler string) bool { return scheduler != "dh" }

// virtual is a service as the library takes it.
func virtual(key serviceKey, scheduler string) *ipvs.Service {
	s := &ipvs.Service{
		Address: net.IP(key.addr.Addr().AsSlice()), Protocol: uint16(key.protocol), Port: key.addr.Port(),
		SchedName: scheduler, Flags: flagsOf(scheduler), Timeout: ownTimeout, AddressFamily: unix.AF_INET, Netmask: 0xffffffff,
	}
	if key.addr.Addr().Is6() {
		s.AddressFamily, s.Netmask = unix.AF_INET6, 128
	}
	return s
}

func endpointOf(endpoint netip.AddrPort, weight int) *ipvs.Destination {
	d := &ipvs.Destination{Address: net.IP(endpoint.Addr().AsSlice()), Port: endpoint.Port(), Weight: weight, AddressFamily: unix.AF_INET}
	if endpoint.Addr().Is6() {
		d.AddressFamily = unix.AF_INET6
	}
	return d
}

// put makes a service, or gives a service that is there its scheduler and our mark.
func (k *kernel) put(key serviceKey, scheduler string, there bool) error {
	k.counts.messages++
	if there {
		if err := k.ipvs.UpdateService(virtual(key, scheduler)); err != nil {
			return fmt.Errorf("changing %s: %w", key, err)
		}
		return nil
	}
	err := k.ipvs.NewService(virtual(key, scheduler))
	if errors.Is(err, unix.EEXIST) {
		if have, err := k.ipvs.GetService(virtual(key, "")); err == nil && have.Timeout != ownTimeout {
			k.own.Add(1)
		}
		return k.put(key, scheduler, true)
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("making %s: the kernel has no scheduler %s (module ip_vs_%s): %w", key, scheduler, scheduler, err)
	}
	if err != nil {
		return fmt.Errorf("making %s with scheduler %s: %w", key, scheduler, err)
	}
	k.own.Add(1)
	return nil
}

// remove removes a service; existing connections through it end.
func (k *kernel) remove(key serviceKey) error {
	k.counts.messages++
	err := k.ipvs.DelService(virtual(key, ""))
	if err == nil {
		k.own.Add(-1)
		return nil
	}
	if !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing %s: %w", key, err)
	}
	return nil
}

// add adds an endpoint, or makes one that drains serve again.
func (k *kernel) add(key serviceKey, endpoint netip.AddrPort) error {
	k.counts.messages++
	err := k.ipvs.NewDestination(virtual(key, ""), endpointOf(endpoint, 1))
	if errors.Is(err, unix.EEXIST) {
		return k.weigh(key, endpoint, 1)
	}
	if err != nil {
		return fmt.Errorf("adding endpoint %s to %s: %w", endpoint, key, err)
	}
	return nil
}

// weigh gives an endpoint a weight; with 0 it gets no new connections.
func (k *kernel) weigh(key serviceKey, endpoint netip.AddrPort, weight int) error {
	k.counts.messages++
	if err := k.ipvs.UpdateDestination(virtual(key, ""), endpointOf(endpoint, weight)); err != nil {
		return fmt.Errorf("giving endpoint %s of %s weight %d: %w", endpoint, key, weight, err)
	}
	return nil
}

// cut removes an endpoint.
func (k *kernel) cut(key serviceKey, endpoint netip.AddrPort) error {
	k.counts.messages++
	err := k.ipvs.DelDestination(virtual(key, ""), endpointOf(endpoint, 0))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("removing endpoint %s from %s: %w", endpoint, key, err)
	}
	return nil
}

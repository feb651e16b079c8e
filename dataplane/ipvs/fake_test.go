package ipvs

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// fake is an IPVS that keeps what it is told, and refuses what it is told to refuse.
type fake struct {
	handle   // what is not faked panics
	services map[serviceKey]*fakeService
	refuse   func(do string, key serviceKey, endpoint netip.AddrPort) error // nil: nothing
	log      []string
}

type fakeService struct {
	scheduler string
	flags     uint32
	timeout   uint32
	weights   map[netip.AddrPort]int
}

func newFake() *fake { return &fake{services: map[serviceKey]*fakeService{}} }

// backendOf returns a backend that has a fake in the kernel's place.
func backendOf(f *fake) *backend {
	b := &backend{log: slog.New(slog.DiscardHandler), drains: map[draining]time.Time{}}
	b.kernel = &kernel{ipvs: f, counts: &b.counts}
	return b
}

// do notes a step and returns why it is refused, or that its service is not there.
func (f *fake) do(what string, s *ipvs.Service, d *ipvs.Destination) (*fakeService, netip.AddrPort, error) {
	key, _ := keyOf(s)
	var endpoint netip.AddrPort
	if d != nil {
		a, _ := netip.AddrFromSlice(d.Address)
		endpoint = netip.AddrPortFrom(a, d.Port)
	}
	f.log = append(f.log, fmt.Sprintf("%s %s", what, key.addr))
	if d != nil {
		f.log[len(f.log)-1] = fmt.Sprintf("%s %s of %s", what, endpoint, key.addr)
	}
	if f.refuse != nil {
		if err := f.refuse(what, key, endpoint); err != nil {
			return nil, endpoint, err
		}
	}
	have := f.services[key]
	if have == nil && what != "make" {
		return nil, endpoint, unix.ESRCH
	}
	return have, endpoint, nil
}

func (f *fake) NewService(s *ipvs.Service) error {
	have, _, err := f.do("make", s, nil)
	if err != nil {
		return err
	}
	if have != nil {
		return unix.EEXIST
	}
	key, _ := keyOf(s)
	f.services[key] = &fakeService{s.SchedName, s.Flags, s.Timeout, map[netip.AddrPort]int{}}
	return nil
}

func (f *fake) UpdateService(s *ipvs.Service) error {
	have, _, err := f.do("change to "+s.SchedName, s, nil)
	if err == nil {
		have.scheduler, have.flags, have.timeout = s.SchedName, s.Flags, s.Timeout
	}
	return err
}

func (f *fake) DelService(s *ipvs.Service) error {
	_, _, err := f.do("remove", s, nil)
	if err == nil {
		key, _ := keyOf(s)
		delete(f.services, key)
	}
	return err
}

func (f *fake) GetService(s *ipvs.Service) (*ipvs.Service, error) {
	have, _, err := f.do("read", s, nil)
	if err != nil {
		return nil, err
	}
	out := *s
	out.SchedName, out.Flags, out.Timeout = have.scheduler, have.flags, have.timeout
	return &out, nil
}

func (f *fake) NewDestination(s *ipvs.Service, d *ipvs.Destination) error {
	have, endpoint, err := f.do("add", s, d)
	if err != nil {
		return err
	}
	if _, there := have.weights[endpoint]; there {
		return unix.EEXIST
	}
	have.weights[endpoint] = d.Weight
	return nil
}

func (f *fake) UpdateDestination(s *ipvs.Service, d *ipvs.Destination) error {
	have, endpoint, err := f.do(fmt.Sprintf("weigh %d", d.Weight), s, d)
	if err != nil {
		return err
	}
	if _, there := have.weights[endpoint]; !there {
		return unix.ENOENT
	}
	have.weights[endpoint] = d.Weight
	return nil
}

func (f *fake) DelDestination(s *ipvs.Service, d *ipvs.Destination) error {
	have, endpoint, err := f.do("cut", s, d)
	if err != nil {
		return err
	}
	if _, there := have.weights[endpoint]; !there {
		return unix.ENOENT
	}
	delete(have.weights, endpoint)
	return nil
}

// GetDestinations says of each endpoint that it has a connection.
func (f *fake) GetDestinations(s *ipvs.Service) ([]*ipvs.Destination, error) {
	have, _, err := f.do("list", s, nil)
	if err != nil {
		return nil, err
	}
	var out []*ipvs.Destination
	for a, weight := range have.weights {
		d := endpointOf(a, weight)
		d.ActiveConnections = 1
		out = append(out, d)
	}
	return out, nil
}

// TestSchedulerThatDoesNotDrain: what drains is cut before a service gets a scheduler
// that gives clients to endpoints of weight 0, whoever knows that it drains.
func TestSchedulerThatDoesNotDrain(t *testing.T) {
	key := serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.1:80")}
	stays, leaves := netip.MustParseAddrPort("10.244.1.5:80"), netip.MustParseAddrPort("10.244.1.6:80")
	serves, drains := map[netip.AddrPort]destination{stays: {weight: 1}}, map[netip.AddrPort]destination{stays: {weight: 1}, leaves: {}}
	both := map[netip.AddrPort]destination{stays: {weight: 1}, leaves: {weight: 1}}
	for _, tc := range []struct {
		name      string
		scheduler string // that comes
		held      map[netip.AddrPort]destination
		known     bool // that it drains
		want      []string
		wantKnown bool
	}{
		{"a change to dh, while it drains from before", "dh", serves, true, []string{"cut 10.244.1.6:80 of 10.96.0.1:80", "change to dh 10.96.0.1:80"}, false},
		{"a repair to dh, which reads it back", "dh", drains, true, []string{"cut 10.244.1.6:80 of 10.96.0.1:80", "change to dh 10.96.0.1:80"}, false},
		{"a restart with dh", "dh", drains, false, []string{"cut 10.244.1.6:80 of 10.96.0.1:80", "change to dh 10.96.0.1:80"}, false},
		{"dh, and it goes only now", "dh", both, false, []string{"change to dh 10.96.0.1:80", "cut 10.244.1.6:80 of 10.96.0.1:80"}, false},
		{"one that passes over it", "wlc", serves, true, []string{"change to wlc 10.96.0.1:80"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			b := backendOf(f)
			f.services[key] = &fakeService{"rr", 0, ownTimeout, map[netip.AddrPort]int{stays: 1, leaves: 0}}
			if tc.known {
				b.drains[draining{key, leaves}] = time.Now().Add(time.Minute)
			}
			change := serviceChange{
				want: service{key, tc.scheduler, pool(stays.String()).Endpoints}, there: true,
				held: heldService{scheduler: "rr", ours: true, destinations: tc.held},
			}
			if err := b.writeService(change); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(f.log, tc.want) {
				t.Errorf("it did %q, want %q", f.log, tc.want)
			}
			if _, known := b.drains[draining{key, leaves}]; known != tc.wantKnown {
				t.Errorf("it is known to drain: %t, want %t", known, tc.wantKnown)
			}
		})
	}
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// counts are what was written, for those who measure.
type counts struct {
	table    nft.Counts
	messages int // to IPVS
	routes   int
}

// target is where the parts of a family beside its IPVS services are written.
type target struct {
	table interface {
		Write(change *nft.Change, note func(chain string) string) error
	}
	routes interface {
		add(to netip.Addr) error
		remove(to netip.Addr) error
	}
}

func (f *familyBackend) target() target { return target{f.table, f.backend.kernel.routes} }

// write writes what a diff found, in this order: what new connections need before
// they come, what leads them there, and removals last. What the kernel refuses of a
// service keeps nothing else from being written.
func (f *familyBackend) write(ctx context.Context, to target, d *diff, state localnet.State) ([]refusedService, error) {
	if err := f.writeFirst(to, &d.First, state); err != nil {
		return nil, err
	}
	refused, err := f.backend.writeServices(ctx, d.services)
	if err != nil {
		return nil, err
	}
	if err := to.writeRoutes(d); err != nil {
		return nil, err
	}
	gone := f.backend.removeServices(d.goneServices)
	return refused, errors.Join(gone, to.table.Write(&d.Last, state.Notes(chainInput)))
}

// writeServices brings IPVS services to what is wanted, and returns those that the
// kernel refuses. Any other error ends it.
func (b *backend) writeServices(ctx context.Context, services []serviceChange) (refused []refusedService, err error) {
	for _, s := range services {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := b.writeService(s)
		switch {
		case err == nil:
		case ofService(err):
			refused = append(refused, refusedService{s.port, s.want.key, err})
		default:
			return nil, err
		}
	}
	return refused, nil
}

// removeServices removes IPVS services that nobody wants. No ServicePort can answer for
// one that stays, so that it is the family that is not as wanted; what else there is to
// do is done.
func (b *backend) removeServices(keys []serviceKey) error {
	var errs []error
	for _, key := range keys {
		b.forget(key)
		err := b.kernel.remove(key)
		if err != nil && !ofService(err) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeFirst writes the table's first step. The rule that keeps neighbours off
// 127.0.0.0/8 is there as long as the kernel would let them in.
func (f *familyBackend) writeFirst(to target, c *nft.Change, state localnet.State) error {
	if f.localnet == localnet.Switched && state == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if err := to.table.Write(c, state.Notes(chainInput)); err != nil {
		return err
	}
	f.localnet = state
	if f.localnet == localnet.Switched {
		return localnet.Switch(true)
	}
	return nil
}

func (to target) writeRoutes(d *diff) error {
	for _, routes := range [][]netip.Addr{d.wrongRoutes, d.newRoutes, d.oldRoutes} {
		slices.SortFunc(routes, netip.Addr.Compare) // so that what fails again says the same again
	}
	for _, a := range d.wrongRoutes { // one at a time, so that each is missing for a moment only
		if err := to.routes.remove(a); err != nil {
			return err
		}
		if err := to.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range d.newRoutes {
		if err := to.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range d.oldRoutes {
		if err := to.routes.remove(a); err != nil {
			return err
		}
	}
	return nil
}

// writeService brings one IPVS service to what is wanted: new endpoints before
// old ones go.
func (b *backend) writeService(s serviceChange) error {
	for _, step := range []func(serviceChange) error{b.cutDraining, b.putService, b.serve, b.retire} {
		if err := step(s); err != nil {
			return err
		}
	}
	return nil
}

// cutDraining removes the endpoints that drain before the service gets a scheduler
// that would give them clients.
func (b *backend) cutDraining(s serviceChange) error {
	if canDrain(s.want.scheduler) {
		return nil
	}
	drain := map[netip.AddrPort]bool{}
	for a, d := range s.held.destinations {
		if d.weight == 0 {
			drain[a] = true
		}
	}
	for d := range b.drains {
		if d.service == s.want.key {
			drain[d.endpoint] = true
		}
	}
	for _, e := range s.want.endpoints { // those serve again
		delete(drain, e.Addr)
	}
	return b.cut(s.want.key, slices.SortedFunc(maps.Keys(drain), netip.AddrPort.Compare))
}

// putService makes a service, or gives the one that is there its scheduler.
func (b *backend) putService(s serviceChange) error {
	key, foreign := s.want.key, s.there && !s.held.ours
	if foreign {
		b.log.Warn("taking over an IPVS service of another program: a Service has its address", "service", key.addr.String(), "protocol", key.protocol.String())
	}
	if s.there && s.held.ours && s.held.scheduler == s.want.scheduler && s.held.flags == flagsOf(s.want.scheduler) {
		return nil
	}
	if err := b.kernel.put(key, s.want.scheduler, s.there); err != nil {
		return err
	}
	if foreign {
		b.kernel.own.Add(1)
	}
	return nil
}

// serve gives a service the endpoints that it has not, or that drain.
func (b *backend) serve(s serviceChange) error {
	key := s.want.key
	for _, e := range s.want.endpoints {
		d, there := s.held.destinations[e.Addr]
		var err error
		switch {
		case !there:
			err = b.kernel.add(key, e.Addr)
		case d.weight != 1:
			err = b.kernel.weigh(key, e.Addr, 1)
		}
		if err != nil {
			return err
		}
		delete(b.drains, draining{key, e.Addr})
	}
	return nil
}

// retire takes the endpoints out of a service that are not wanted any more.
func (b *backend) retire(s serviceChange) error {
	key, drains := s.want.key, canDrain(s.want.scheduler)
	var old []netip.AddrPort
	for a, d := range s.held.destinations {
		if slices.ContainsFunc(s.want.endpoints, func(e dataplane.Endpoint) bool { return e.Addr == a }) {
			continue
		}
		if d.weight > 0 {
			old = append(old, a)
		} else if _, known := b.drains[draining{key, a}]; drains && !known { // an earlier process left it to drain
			b.drains[draining{key, a}] = b.deadline(key)
		}
	}
	slices.SortFunc(old, netip.AddrPort.Compare)
	if !drains {
		return b.cut(key, old)
	}
	return b.drainEndpoints(key, old)
}

// virtual returns a service as the library takes it.
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

// put makes a service, or gives a service that is there its scheduler and our timeout.
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

// setting is a kernel setting that IPVS needs, and why.
type setting struct {
	name     string
	value    int
	optional bool // some kernels do not have it
}

func (o Options) settings() []setting {
	all := []setting{
		{"net/ipv4/vs/conntrack", 1, false},                 // or nothing could be masqueraded
		{"net/ipv4/vs/expire_nodest_conn", 1, false},        // a flow whose endpoint is gone gets another
		{"net/ipv4/vs/expire_quiescent_template", 1, false}, // so does a persistent client's
		{"net/ipv4/vs/run_estimation", 0, true},             // rates cost a walk over all endpoints every 2 s; Linux 5.17
		{"net/ipv4/ip_forward", 1, false},                   // answers pass through
	}
	if o.StrictARP {
		all = append(all, setting{"net/ipv4/conf/all/arp_ignore", 1, false}, setting{"net/ipv4/conf/all/arp_announce", 2, false})
	}
	return all
}

// applySettings writes what is not yet so.
func (b *backend) applySettings() error {
	for _, s := range b.options.settings() {
		err := sysctl.Proc.SetInt(s.name, s.value)
		if err != nil && (!s.optional || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return b.applyTimeouts()
}

// applyTimeouts sets the timeouts that were asked for.
func (b *backend) applyTimeouts() error {
	want := ipvs.Config{TimeoutTCP: b.options.TCPTimeout, TimeoutTCPFin: b.options.TCPFinTimeout, TimeoutUDP: b.options.UDPTimeout}
	if want == (ipvs.Config{}) {
		return nil
	}
	have, err := b.kernel.ipvs.GetConfig()
	if err != nil {
		return fmt.Errorf("reading the IPVS timeouts: %w", err)
	}
	same := (want.TimeoutTCP == 0 || want.TimeoutTCP == have.TimeoutTCP) &&
		(want.TimeoutTCPFin == 0 || want.TimeoutTCPFin == have.TimeoutTCPFin) &&
		(want.TimeoutUDP == 0 || want.TimeoutUDP == have.TimeoutUDP)
	if same {
		return nil
	}
	if err := b.kernel.ipvs.SetConfig(&want); err != nil {
		return fmt.Errorf("setting the IPVS timeouts: %w", err)
	}
	return nil
}

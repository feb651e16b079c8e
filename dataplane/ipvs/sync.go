package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	accepted, failed, err := b.refuse(prev, want)
	if err != nil {
		return err
	}
	next := b.env
	next.see(accepted, b.cfg.LocalhostNodePorts)
	if prev == nil || !next.samePlans(&b.env) || next.rebinds(&b.env, accepted.Ports) {
		err = b.full(ctx, &next, accepted)
	} else {
		err = b.change(ctx, &next, prev, accepted)
	}
	b.held = nil
	if err != nil {
		return err
	}
	b.env, b.held = next, accepted
	if len(failed) > 0 {
		return &dataplane.PartialError{Failed: failed}
	}
	return nil
}

// refuse takes out of want what cannot be programmed; that stays as it was.
func (b *backend) refuse(prev, want *dataplane.Snapshot) (*dataplane.Snapshot, []dataplane.PortError, error) {
	var before dataplane.Ports
	if prev != nil {
		before = prev.Ports
	}
	var failed []dataplane.PortError
	var keep []*dataplane.ServicePort
	var drop []dataplane.PortID
	for old, cur := range dataplane.Diff(before, want.Ports) {
		if cur == nil {
			continue
		}
		why, err := b.refusal(cur)
		if err != nil {
			return nil, nil, err
		}
		if why == nil {
			continue
		}
		failed = append(failed, dataplane.PortError{ID: cur.ID, Err: why})
		if old = dataplane.Fallback(old, cur); old != nil {
			keep = append(keep, old)
		} else {
			drop = append(drop, cur.ID)
		}
	}
	if len(failed) == 0 {
		return want, nil, nil
	}
	accepted := *want
	accepted.Ports = want.Ports.With(keep, drop)
	return &accepted, failed, nil
}

// refusal is why a ServicePort cannot be programmed, nil if it can.
func (b *backend) refusal(port *dataplane.ServicePort) (why, fault error) {
	if !slices.Contains(b.cfg.Families, port.ID.Family) {
		return fmt.Errorf("the agent programs no %s here", port.ID.Family), nil
	}
	if port.Scheduler != "" {
		if err := b.tryScheduler(port.Scheduler); err != nil {
			return err, nil
		}
	}
	for _, f := range port.Frontends {
		if f.Kind == dataplane.NodePort || !b.excluded(f.Addr.Addr()) {
			continue
		}
		key := serviceKey{port.ID.Protocol, f.Addr}
		have, err := b.kernel.ipvs.GetService(virtual(key, ""))
		b.counts.messages++
		switch {
		case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", key, err)
		case have.Timeout != ownTimeout:
			return fmt.Errorf("another program has %s, and --ipvs-exclude-cidrs leaves that alone", key), nil
		}
	}
	return nil, nil
}

func (b *backend) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(b.options.ExcludeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// schedulerAgain is after how long a scheduler is asked for again that the kernel
// did not have: somebody may load its module meanwhile.
const schedulerAgain = 10 * time.Second

// triedScheduler is what became of the search for a scheduler.
type triedScheduler struct {
	err error
	at  time.Time
}

// tryScheduler finds out whether the kernel has a scheduler.
func (b *backend) tryScheduler(name string) error {
	tried, known := b.schedulers[name]
	if !known || tried.err != nil && time.Since(tried.at) >= schedulerAgain {
		tried.err = b.searchScheduler(name)
		tried.at = time.Now()
		b.schedulers[name] = tried
	}
	return tried.err
}

// findScheduler makes a service with a scheduler in a network namespace of its own.
func (b *backend) findScheduler(name string) error {
	return netns.InScratch(func() error { return tryServices(b.cfg.Families[0], name) })
}

// wanted is all that the kernel shall hold.
type wanted struct {
	services []service
	elements map[nft.Element]string
	refs     map[nft.Element]int
}

func (e *env) wantAll(ports dataplane.Ports) *wanted {
	w := &wanted{elements: map[nft.Element]string{}, refs: map[nft.Element]int{}}
	for port := range ports.All() {
		p := e.planFor(port)
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

// full reads the kernel back and writes what differs.
func (b *backend) full(ctx context.Context, next *env, want *dataplane.Snapshot) error {
	if err := b.applySettings(); err != nil {
		return err
	}
	have, err := b.read()
	if err != nil {
		return err
	}
	c, err := b.compare(have, next, want)
	if err != nil {
		return err
	}
	b.refs, b.localnet = c.refs, c.localnet
	return b.write(ctx, &c.writes)
}

func (c *tableWrites) compareElements(have, want map[nft.Element]string) {
	for e, data := range want {
		old, ok := have[e]
		if ok && old == data {
			continue
		}
		c.first.Put[e] = data
		c.first.Replaced[e] = ok
	}
	renewed := map[string]bool{} // places that get source ranges
	for e := range c.first.Put {
		if e.Set == setSources {
			renewed[e.Key[:nft.PlaceLen(e.Family)]] = true
		}
	}
	for e := range have {
		if _, ok := want[e]; ok {
			continue
		}
		// The kernel refuses ranges that overlap: the old ones make room.
		if e.Set == setSources && renewed[e.Key[:nft.PlaceLen(e.Family)]] {
			c.first.Remove = append(c.first.Remove, e)
		} else {
			c.last.Remove = append(c.last.Remove, e)
		}
	}
}

// rulesFor are a family's rules. What they do about route_localnet depends on
// who switched it on, which an earlier process may have noted.
func rulesFor(f dataplane.Family, next *env, before localnet.State) (*rules, error) {
	r := &rules{env: next, Words: nft.Words{Family: f}}
	if !r.serveLocalhost() {
		return r, nil
	}
	var err error
	r.localnet, err = localnet.Next(before)
	return r, err
}

// change writes what differs between two Snapshots, the first of which the
// kernel holds.
func (b *backend) change(ctx context.Context, next *env, prev, want *dataplane.Snapshot) error {
	w, err := b.difference(next, prev, want)
	if err != nil {
		return err
	}
	return b.write(ctx, w)
}

// difference is what change writes. It takes over who wants what is shared.
func (b *backend) difference(next *env, prev, want *dataplane.Snapshot) (*writes, error) {
	before := map[nft.Element]int{}
	was, is := map[nft.Element]string{}, map[nft.Element]string{}
	oldServices, newServices := map[serviceKey]service{}, []service(nil)
	touch := func(e nft.Element, by int) {
		if _, ok := before[e]; !ok {
			before[e] = b.refs[e]
		}
		if b.refs[e] += by; b.refs[e] == 0 {
			delete(b.refs, e)
		}
	}
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		if old != nil {
			p := b.env.planFor(old)
			maps.Copy(was, p.elements)
			for e := range p.shared {
				touch(e, -1)
			}
			for _, s := range p.services {
				oldServices[s.key] = s
			}
		}
		if cur != nil {
			p := next.planFor(cur)
			maps.Copy(is, p.elements)
			for e := range p.shared {
				touch(e, 1)
			}
			newServices = append(newServices, p.services...)
		}
	}
	for e, n := range before {
		if n > 0 {
			was[e] = ""
		}
		if b.refs[e] > 0 {
			is[e] = ""
		}
	}
	w := &writes{}
	if err := b.planTables(next, prev, want, was, is, w); err != nil {
		return nil, err
	}
	for _, s := range newServices {
		old, there := oldServices[s.key]
		delete(oldServices, s.key)
		w.services = append(w.services, serviceChange{want: s, have: b.asWritten(old), there: there})
	}
	w.goneServices = slices.AppendSeq(w.goneServices, maps.Keys(oldServices))
	return w, nil
}

// planTables lists what changes in each table, and the routes that go with it.
func (b *backend) planTables(next *env, prev, want *dataplane.Snapshot, was, is map[nft.Element]string, w *writes) error {
	sameNode := prev.Node == want.Node && slices.Equal(prev.ServiceCIDRs, want.ServiceCIDRs)
	for _, t := range b.tables {
		r := &rules{env: next, Words: nft.Words{Family: t.Family}}
		if r.serveLocalhost() {
			r.localnet = b.localnet
		}
		c := tableWrites{table: t, rules: r, first: nft.NewChange()}
		have, want := map[nft.Element]string{}, map[nft.Element]string{}
		for e, data := range was {
			if e.Family == t.Family {
				have[e] = data
			}
		}
		for e, data := range is {
			if e.Family == t.Family {
				want[e] = data
			}
		}
		c.compareElements(have, want)
		if !sameNode {
			old := &rules{env: &b.env, Words: nft.Words{Family: t.Family}, localnet: r.localnet}
			if err := c.compareChains(old.constants(), r.constants()); err != nil {
				return err
			}
		}
		c.takeChains()
		w.takeRoutes(&c)
		w.tables = append(w.tables, c)
	}
	return nil
}

// takeChains turns what stands for chains into chains.
func (c *tableWrites) takeChains() {
	for e := range c.first.Put {
		if e.Set == setChains {
			c.first.Chains[e.Key] = c.rules.numbered(e.Key)
			delete(c.first.Put, e)
		}
	}
	c.last.Remove = slices.DeleteFunc(c.last.Remove, func(e nft.Element) bool {
		if e.Set == setChains {
			c.last.OldChains = append(c.last.OldChains, e.Key)
		}
		return e.Set == setChains
	})
}

func (c *tableWrites) compareChains(old, cur map[string][]nft.Rule) error {
	for name, chain := range cur {
		have, err := c.table.Comments(old[name], "")
		if err != nil {
			return err
		}
		want, err := c.table.Comments(chain, "")
		if err != nil {
			return err
		}
		if !slices.Equal(have, want) {
			c.first.Chains[name] = chain
		}
	}
	return nil
}

// asWritten is a service as an earlier Sync left it.
func (b *backend) asWritten(s service) held {
	h := held{scheduler: s.scheduler, flags: flagsOf(s.scheduler), ours: true, destinations: make(map[netip.AddrPort]destination, len(s.endpoints))}
	for _, e := range s.endpoints {
		h.destinations[e.Addr] = destination{weight: 1}
	}
	return h
}

// writes are what one Sync does to the kernel, in this order: what new
// connections need before they come, what leads them there, and removals last.
type writes struct {
	tables       []tableWrites
	services     []serviceChange
	wrongRoutes  []netip.Addr // there with another source or MTU
	newRoutes    []netip.Addr
	oldRoutes    []netip.Addr
	goneServices []serviceKey
}

// tableWrites are the first and the last step.
type tableWrites struct {
	table       *nft.Table
	rules       *rules
	first, last nft.Change
}

type serviceChange struct {
	want  service
	have  held
	there bool
}

func (w *writes) compareRoutes(f dataplane.Family, have map[netip.Addr]bool, all *wanted) {
	for e := range all.elements {
		if e.Set != setVIPs || e.Family != f {
			continue
		}
		switch right, there := have[nft.AddrOf(e.Key)]; {
		case !there:
			w.newRoutes = append(w.newRoutes, nft.AddrOf(e.Key))
		case !right:
			w.wrongRoutes = append(w.wrongRoutes, nft.AddrOf(e.Key))
		}
	}
	for a := range have {
		if _, ok := all.elements[nft.Element{Family: f, Set: setVIPs, Key: nft.AddrBytes(a)}]; !ok {
			w.oldRoutes = append(w.oldRoutes, a)
		}
	}
}

// takeRoutes adds the routes for the addresses that come and go.
func (w *writes) takeRoutes(c *tableWrites) {
	for e := range c.first.Put {
		if e.Set == setVIPs {
			w.newRoutes = append(w.newRoutes, nft.AddrOf(e.Key))
		}
	}
	for _, e := range c.last.Remove {
		if e.Set == setVIPs {
			w.oldRoutes = append(w.oldRoutes, nft.AddrOf(e.Key))
		}
	}
}

func (b *backend) write(ctx context.Context, w *writes) error {
	for _, c := range w.tables {
		if err := b.writeFirst(&c); err != nil {
			return err
		}
	}
	for _, s := range w.services {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.writeService(s); err != nil {
			return err
		}
	}
	for _, a := range w.wrongRoutes { // one at a time, so that each is missing for a moment only
		if err := b.routes.remove(a); err != nil {
			return err
		}
		if err := b.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range w.newRoutes {
		if err := b.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range w.oldRoutes {
		if err := b.routes.remove(a); err != nil {
			return err
		}
	}
	for _, key := range w.goneServices {
		b.forget(key)
		if err := b.kernel.remove(key); err != nil {
			return err
		}
	}
	for _, c := range w.tables {
		if err := c.table.Write(&c.last, noteOf(c.rules.localnet)); err != nil {
			return err
		}
	}
	return nil
}

// writeFirst writes a table's first step. The rule that keeps neighbours off
// 127.0.0.0/8 is there as long as the kernel would let them in.
func (b *backend) writeFirst(c *tableWrites) error {
	if c.table.Family == dataplane.IPv4 && b.localnet == localnet.Switched && c.rules.localnet == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if err := c.table.Write(&c.first, noteOf(c.rules.localnet)); err != nil {
		return err
	}
	if c.table.Family != dataplane.IPv4 {
		return nil
	}
	b.localnet = c.rules.localnet
	if b.localnet == localnet.Switched {
		return localnet.Switch(true)
	}
	return nil
}

// writeService brings one IPVS service to what is wanted: new endpoints before
// old ones go.
func (b *backend) writeService(s serviceChange) error {
	key := s.want.key
	if s.there && !s.have.ours {
		b.log.Warn("taking over an IPVS service of another program: a Service has its address", "service", key.addr.String(), "protocol", key.protocol.String())
	}
	if !s.there || !s.have.ours || s.have.scheduler != s.want.scheduler || s.have.flags != flagsOf(s.want.scheduler) {
		if err := b.kernel.put(key, s.want.scheduler, s.there); err != nil {
			return err
		}
	}
	for _, e := range s.want.endpoints {
		d, there := s.have.destinations[e.Addr]
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
	var old []netip.AddrPort
	for a, d := range s.have.destinations {
		if slices.ContainsFunc(s.want.endpoints, func(e dataplane.Endpoint) bool { return e.Addr == a }) {
			continue
		}
		if d.weight > 0 || !drains(s.want.scheduler) {
			old = append(old, a)
		} else if _, known := b.drains[draining{key, a}]; !known { // an earlier process left it to drain
			b.drains[draining{key, a}] = b.deadline(key)
		}
	}
	slices.SortFunc(old, netip.AddrPort.Compare)
	if !drains(s.want.scheduler) {
		return b.cut(key, old)
	}
	return b.retire(key, old)
}

package ipvs

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// half is what one family has in the kernel: a table, IPVS services and routes.
type half struct {
	backend *backend
	family  dataplane.Family
	table   *nft.Table
	reader  *nft.Table // for Observe alongside Syncs
	noted   atomic.Pointer[half]

	// What the kernel holds; held is nil where that is unknown.
	held     *dataplane.Snapshot
	env      env
	localnet localnet.State
	ids      *affinity.IDs
	refs     map[nft.Element]int // how many ServicePorts want a shared element
}

// sync makes the family's part of the kernel as want describes. common reads what
// both families need.
func (h *half) sync(ctx context.Context, prev, want *dataplane.Snapshot, common func() (*common, error)) error {
	known := prev != nil && h.held != nil
	h.held = nil
	next := h.env
	next.see(want, h.family, h.backend.cfg.LocalhostNodePorts)
	var err error
	if known && next.samePlans(&h.env) && !next.rebinds(&h.env, want.Ports) {
		err = h.change(ctx, &next, prev, want)
	} else {
		err = h.backend.watch.tables.Paused(func() error { return h.full(ctx, &next, want, common) })
	}
	if err == nil {
		h.env, h.held = next, want
	}
	h.note()
	return err
}

// note notes what a Sync left, as far as drift needs it.
func (h *half) note() {
	if h.held == nil {
		h.noted.Store(nil)
		return
	}
	h.noted.Store(&half{backend: h.backend, family: h.family, table: h.reader, held: h.held, env: h.env, localnet: h.localnet, ids: h.ids})
}

// full reads the kernel back and writes what differs.
func (h *half) full(ctx context.Context, next *env, want *dataplane.Snapshot, common func() (*common, error)) error {
	all, err := common()
	if err != nil {
		return err
	}
	have, err := h.read(h.backend.kernel, h.table, all)
	if err != nil {
		return err
	}
	before := h.ids
	h.ids = affinity.Resume(want.Ports, func(p *dataplane.ServicePort) uint32 { return cmp.Or(have.table.NumberOf(p, setIDs), before.Known(p)) })
	c, err := h.compare(have, next, want, h.ids.Of)
	if err != nil {
		return err
	}
	h.refs, h.localnet = c.refs, c.localnet
	return h.write(ctx, &c.writes)
}

// change writes what differs between two Snapshots, the first of which the
// kernel holds.
func (h *half) change(ctx context.Context, next *env, prev, want *dataplane.Snapshot) error {
	w, err := h.difference(next, prev, want)
	if err != nil {
		return err
	}
	return h.write(ctx, w)
}

// difference is what change writes. It takes over who wants what is shared.
func (h *half) difference(next *env, prev, want *dataplane.Snapshot) (*writes, error) {
	before := map[nft.Element]int{}
	was, is := map[nft.Element]string{}, map[nft.Element]string{}
	oldServices, newServices := map[serviceKey]service{}, []service(nil)
	touch := func(e nft.Element, by int) {
		if _, ok := before[e]; !ok {
			before[e] = h.refs[e]
		}
		if h.refs[e] += by; h.refs[e] == 0 {
			delete(h.refs, e)
		}
	}
	for old, cur := range dataplane.Diff(prev.Ports, want.Ports) {
		if old != nil && old.ID.Family == h.family {
			p := h.env.planFor(old, h.ids.Of(old))
			maps.Copy(was, p.elements)
			for e := range p.shared {
				touch(e, -1)
			}
			for _, s := range p.services {
				oldServices[s.key] = s
			}
			h.ids.Forget(old, cur)
		}
		if cur != nil && cur.ID.Family == h.family {
			p := next.planFor(cur, h.ids.Of(cur))
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
		if h.refs[e] > 0 {
			is[e] = ""
		}
	}
	sameNode := prev.Node == want.Node && slices.Equal(prev.ServiceCIDRs, want.ServiceCIDRs)
	w, err := h.planTable(next, sameNode, was, is)
	if err != nil {
		return nil, err
	}
	for _, s := range newServices {
		old, there := oldServices[s.key]
		delete(oldServices, s.key)
		w.services = append(w.services, serviceChange{want: s, have: h.asWritten(old), there: there})
	}
	w.goneServices = slices.AppendSeq(w.goneServices, maps.Keys(oldServices))
	return w, nil
}

// planTable lists what changes in the table, and the routes that go with it.
func (h *half) planTable(next *env, sameNode bool, was, is map[nft.Element]string) (*writes, error) {
	r := &rules{env: next, Words: nft.Words{Family: h.family}}
	if r.serveLocalhost() {
		r.localnet = h.localnet
	}
	w := &writes{rules: r, first: nft.NewChange()}
	w.compareElements(was, is)
	if !sameNode {
		old := &rules{env: &h.env, Words: nft.Words{Family: h.family}, localnet: r.localnet}
		if err := w.compareChains(h.table, old.constants(), r.constants()); err != nil {
			return nil, err
		}
	}
	w.takeChains()
	w.takeRoutes()
	return w, nil
}

// asWritten is a service as an earlier Sync left it.
func (h *half) asWritten(s service) held {
	out := held{scheduler: s.scheduler, flags: flagsOf(s.scheduler), ours: true, destinations: make(map[netip.AddrPort]destination, len(s.endpoints))}
	for _, e := range s.endpoints {
		out.destinations[e.Addr] = destination{weight: 1}
	}
	return out
}

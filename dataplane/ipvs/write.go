package ipvs

import (
	"context"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// writes are what one Sync does to a family's part of the kernel, in this order:
// what new connections need before they come, what leads them there, and removals
// last.
type writes struct {
	rules        *rules
	first, last  nft.Change // of the table
	services     []serviceChange
	wrongRoutes  []netip.Addr // there with another source or MTU
	newRoutes    []netip.Addr
	oldRoutes    []netip.Addr
	goneServices []serviceKey
}

type serviceChange struct {
	want  service
	have  held
	there bool
}

// compareElements finds the elements that come, change and go.
func (w *writes) compareElements(have, want map[nft.Element]string) {
	for e, data := range want {
		old, ok := have[e]
		if ok && old == data {
			continue
		}
		w.first.Put[e] = data
		w.first.Replaced[e] = ok
	}
	renewed := map[string]bool{} // places that get source ranges
	for e := range w.first.Put {
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
			w.first.Remove = append(w.first.Remove, e)
		} else {
			w.last.Remove = append(w.last.Remove, e)
		}
	}
}

// takeChains turns what stands for chains into chains.
func (w *writes) takeChains() {
	for e := range w.first.Put {
		if e.Set == setChains {
			w.first.Chains[e.Key] = w.rules.numbered(e.Key)
			delete(w.first.Put, e)
		}
	}
	w.last.Remove = slices.DeleteFunc(w.last.Remove, func(e nft.Element) bool {
		if e.Set == setChains {
			w.last.OldChains = append(w.last.OldChains, e.Key)
		}
		return e.Set == setChains
	})
}

// compareChains finds the chains that are not as they were.
func (w *writes) compareChains(t *nft.Table, old, cur map[string][]nft.Rule) error {
	for name, chain := range cur {
		have, err := t.Comments(old[name], "")
		if err != nil {
			return err
		}
		want, err := t.Comments(chain, "")
		if err != nil {
			return err
		}
		if !slices.Equal(have, want) {
			w.first.Chains[name] = chain
		}
	}
	return nil
}

// compareRoutes finds the routes that come, change and go.
func (w *writes) compareRoutes(have map[netip.Addr]bool, f dataplane.Family, all *wanted) {
	for e := range all.elements {
		if e.Set != setVIPs {
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
func (w *writes) takeRoutes() {
	for e := range w.first.Put {
		if e.Set == setVIPs {
			w.newRoutes = append(w.newRoutes, nft.AddrOf(e.Key))
		}
	}
	for _, e := range w.last.Remove {
		if e.Set == setVIPs {
			w.oldRoutes = append(w.oldRoutes, nft.AddrOf(e.Key))
		}
	}
}

func (h *half) write(ctx context.Context, w *writes) error {
	if err := h.writeFirst(w); err != nil {
		return err
	}
	for _, s := range w.services {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.backend.writeService(s); err != nil {
			return err
		}
	}
	if err := h.backend.kernel.writeRoutes(w); err != nil {
		return err
	}
	for _, key := range w.goneServices {
		h.backend.forget(key)
		if err := h.backend.kernel.remove(key); err != nil {
			return err
		}
	}
	return h.table.Write(&w.last, noteOf(w.rules.localnet))
}

// writeFirst writes the table's first step. The rule that keeps neighbours off
// 127.0.0.0/8 is there as long as the kernel would let them in.
func (h *half) writeFirst(w *writes) error {
	if h.localnet == localnet.Switched && w.rules.localnet == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if err := h.table.Write(&w.first, noteOf(w.rules.localnet)); err != nil {
		return err
	}
	h.localnet = w.rules.localnet
	if h.localnet == localnet.Switched {
		return localnet.Switch(true)
	}
	return nil
}

func (k *kernel) writeRoutes(w *writes) error {
	for _, routes := range [][]netip.Addr{w.wrongRoutes, w.newRoutes, w.oldRoutes} {
		slices.SortFunc(routes, netip.Addr.Compare) // so that what fails again says the same again
	}
	for _, a := range w.wrongRoutes { // one at a time, so that each is missing for a moment only
		if err := k.routes.remove(a); err != nil {
			return err
		}
		if err := k.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range w.newRoutes {
		if err := k.routes.add(a); err != nil {
			return err
		}
	}
	for _, a := range w.oldRoutes {
		if err := k.routes.remove(a); err != nil {
			return err
		}
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
		if s.there && !s.have.ours {
			b.kernel.own.Add(1)
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

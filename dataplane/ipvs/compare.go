package ipvs

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// common is what both families need of the kernel, read back once.
type common struct {
	taken    map[netip.Addr]bool // addresses of the node's devices
	services map[serviceKey]held
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

// reading is what the kernel holds of a family, read back once.
type reading struct {
	*common
	table  *nft.State
	routes map[netip.Addr]bool // ours, and whether they are right
}

// read reads the rest of it back.
func (h *half) read(k *kernel, t *nft.Table, all *common) (*reading, error) {
	have := &reading{common: all}
	var err error
	if have.table, err = t.Read(); err != nil {
		return nil, err
	}
	k.routes.findSource(h.family)
	have.routes, err = k.routes.read(h.family)
	return have, err
}

// comparison is what a comparison of the kernel with what is wanted comes to.
type comparison struct {
	writes   writes
	refs     map[nft.Element]int
	localnet localnet.State // as it was found
}

// compare finds what to write; number is of a ServicePort's affinity.
func (h *half) compare(have *reading, next *env, want *dataplane.Snapshot, number func(*dataplane.ServicePort) uint32) (*comparison, error) {
	next.taken = have.taken
	all := next.wantAll(h.family, want.Ports, number)
	c := &comparison{refs: all.refs, localnet: h.localnet}
	if err := c.compareTable(h.table, have.table, next, all); err != nil {
		return nil, err
	}
	c.writes.compareRoutes(have.routes, h.family, all)
	keys := map[serviceKey]bool{}
	for _, s := range all.services {
		keys[s.key] = true
		held, there := have.services[s.key]
		c.writes.services = append(c.writes.services, serviceChange{want: s, have: held, there: there})
	}
	for key, held := range have.services {
		if held.ours && !keys[key] && h.family == dataplane.FamilyOf(key.addr.Addr()) {
			c.writes.goneServices = append(c.writes.goneServices, key)
		}
	}
	return c, nil
}

// compareTable finds what a table lacks and what is too much in it.
func (c *comparison) compareTable(t *nft.Table, state *nft.State, next *env, all *wanted) error {
	elements := next.constantElements(t.Family)
	maps.Copy(elements, all.elements)
	if t.Family == dataplane.IPv4 {
		if guards := state.Chains[chainInput]; len(guards) > 0 || c.localnet != localnet.Switched {
			c.localnet = localnet.FromComments(guards) // as an earlier process left it
		} // else somebody removed the guard, and we know better
	}
	r, err := rulesFor(t.Family, next, c.localnet)
	if err != nil {
		return err
	}
	chains := r.constants()
	for e := range all.refs {
		if e.Set == setChains {
			chains[e.Key] = r.numbered(e.Key)
		}
	}
	w := &c.writes
	w.rules = r
	if !state.Whole() || missesHook(state) {
		w.first = nft.Change{Remake: true, Present: state.Present, Chains: chains, Put: elements}
		return nil
	}
	w.first = nft.NewChange()
	for name, chain := range chains {
		notes, err := t.Comments(chain, noteOf(r.localnet)(name))
		if err != nil {
			return err
		}
		if have, ok := state.Chains[name]; !ok || !slices.Equal(have, notes) {
			w.first.Chains[name] = chain
		}
	}
	for name := range state.Chains {
		if _, ok := chains[name]; !ok {
			w.last.OldChains = append(w.last.OldChains, name)
		}
	}
	w.compareElements(state.Elements, elements)
	return nil
}

// rulesFor are a family's rules. What they do about route_localnet depends on
// who switched it on, which an earlier process may have noted.
func rulesFor(f dataplane.Family, next *env, before localnet.State) (*rules, error) {
	r := &rules{env: next, Words: nft.Words{Family: f}}
	if !r.serveLocalhost() {
		return r, nil
	}
	var err error
	r.localnet, err = localnet.Next(true, before)
	return r, err
}

// missesHook reports whether a base chain is not there.
func missesHook(state *nft.State) bool {
	for name := range baseChains() {
		if _, ok := state.Chains[name]; !ok {
			return true
		}
	}
	return false
}

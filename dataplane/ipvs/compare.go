package ipvs

import (
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// reading is what the kernel holds, read back once.
type reading struct {
	taken    map[netip.Addr]bool // addresses of the node's devices
	services map[serviceKey]held
	tables   map[dataplane.Family]*nft.State
	routes   map[dataplane.Family]map[netip.Addr]bool // ours, and whether they are right
}

// read reads all of it back.
func (b *backend) read() (*reading, error) {
	have := &reading{tables: map[dataplane.Family]*nft.State{}, routes: map[dataplane.Family]map[netip.Addr]bool{}}
	var err error
	if have.taken, err = b.routes.taken(); err != nil {
		return nil, err
	}
	if have.services, err = b.kernel.read(); err != nil {
		return nil, err
	}
	for _, t := range b.tables {
		if have.tables[t.Family], err = t.Read(); err != nil {
			return nil, err
		}
		b.routes.findSource(t.Family)
		if have.routes[t.Family], err = b.routes.read(t.Family); err != nil {
			return nil, err
		}
	}
	return have, nil
}

// comparison is what a comparison of the kernel with what is wanted comes to.
type comparison struct {
	writes   writes
	refs     map[nft.Element]int
	localnet localnet.State // as it was found
}

// compare finds what to write.
func (b *backend) compare(have *reading, next *env, want *dataplane.Snapshot) (*comparison, error) {
	next.taken = have.taken
	all := next.wantAll(want.Ports)
	c := &comparison{refs: all.refs, localnet: b.localnet}
	for _, t := range b.tables {
		if err := c.compareTable(t, have.tables[t.Family], next, all); err != nil {
			return nil, err
		}
		c.writes.compareRoutes(t.Family, have.routes[t.Family], all)
	}
	keys := map[serviceKey]bool{}
	for _, s := range all.services {
		keys[s.key] = true
		h, there := have.services[s.key]
		c.writes.services = append(c.writes.services, serviceChange{want: s, have: h, there: there})
	}
	for key, h := range have.services {
		if h.ours && !keys[key] && slices.Contains(b.cfg.Families, dataplane.FamilyOf(key.addr.Addr())) {
			c.writes.goneServices = append(c.writes.goneServices, key)
		}
	}
	return c, nil
}

// compareTable finds what a table lacks and what is too much in it.
func (c *comparison) compareTable(t *nft.Table, state *nft.State, next *env, all *wanted) error {
	elements := next.constantElements(t.Family)
	for e, data := range all.elements {
		if e.Family == t.Family {
			elements[e] = data
		}
	}
	if t.Family == dataplane.IPv4 {
		c.localnet = localnet.FromComments(state.Chains[chainInput]) // as an earlier process left it
	}
	r, err := rulesFor(t.Family, next, c.localnet)
	if err != nil {
		return err
	}
	chains := r.constants()
	for e := range all.refs {
		if e.Set == setChains && e.Family == t.Family {
			chains[e.Key] = r.numbered(e.Key)
		}
	}
	w := tableWrites{table: t, rules: r}
	if !state.Whole() || missesHook(state) {
		w.first = nft.Change{Remake: true, Present: state.Present, Chains: chains, Put: elements}
		c.writes.tables = append(c.writes.tables, w)
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
	c.writes.tables = append(c.writes.tables, w)
	return nil
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

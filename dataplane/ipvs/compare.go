package ipvs

import (
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// reading is what the kernel holds, read back once.
type reading struct {
	taken    map[netip.Addr]bool // addresses of the node's devices
	services map[serviceKey]held
	tables   map[dataplane.Family]*tableState
	routes   map[dataplane.Family]map[netip.Addr]bool // ours, and whether they are right
}

// read reads all of it back.
func (b *backend) read() (*reading, error) {
	have := &reading{tables: map[dataplane.Family]*tableState{}, routes: map[dataplane.Family]map[netip.Addr]bool{}}
	var err error
	if have.taken, err = b.routes.taken(); err != nil {
		return nil, err
	}
	if have.services, err = b.kernel.read(); err != nil {
		return nil, err
	}
	for _, t := range b.tables {
		if have.tables[t.family], err = t.read(); err != nil {
			return nil, err
		}
		b.routes.findSource(t.family)
		if have.routes[t.family], err = b.routes.read(t.family); err != nil {
			return nil, err
		}
	}
	return have, nil
}

// comparison is what a comparison of the kernel with what is wanted comes to.
type comparison struct {
	writes   writes
	refs     map[element]int
	localnet localnet // as it was found
}

// compare finds what to write.
func (b *backend) compare(have *reading, next *env, want *dataplane.Snapshot) (*comparison, error) {
	next.taken = have.taken
	all := next.wantAll(want.Ports)
	c := &comparison{refs: all.refs, localnet: b.localnet}
	for _, t := range b.tables {
		if err := c.compareTable(t, have.tables[t.family], next, all); err != nil {
			return nil, err
		}
		c.writes.compareRoutes(t.family, have.routes[t.family], all)
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
func (c *comparison) compareTable(t *table, state *tableState, next *env, all *wanted) error {
	elements := next.constantElements(t.family)
	for e, data := range all.elements {
		if e.family == t.family {
			elements[e] = data
		}
	}
	if t.family == dataplane.IPv4 {
		c.localnet = localnetOf(state.chains) // as an earlier process left it
	}
	r, err := rulesFor(t.family, next, c.localnet)
	if err != nil {
		return err
	}
	chains := r.constants()
	for e := range all.refs {
		if e.set == setChains && e.family == t.family {
			chains[e.key] = r.numbered(e.key)
		}
	}
	w := tableWrites{table: t, rules: r}
	if !state.whole {
		w.first = tableChange{remake: true, present: state.present, chains: chains, put: elements}
		c.writes.tables = append(c.writes.tables, w)
		return nil
	}
	w.first = tableChange{chains: map[string][]code{}, put: map[element]string{}, replaced: map[element]bool{}}
	for name, chain := range chains {
		notes, err := t.notes(chain, r.localnet.note(name))
		if err != nil {
			return err
		}
		if have, ok := state.chains[name]; !ok || !slices.Equal(have, notes) {
			w.first.chains[name] = chain
		}
	}
	for name := range state.chains {
		if _, ok := chains[name]; !ok {
			w.last.oldChains = append(w.last.oldChains, name)
		}
	}
	w.compareElements(state.elements, elements)
	c.writes.tables = append(c.writes.tables, w)
	return nil
}

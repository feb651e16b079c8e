package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/buckettree"
)

// change is one ServicePort that comes (old nil), goes (new nil) or is replaced.
type change struct {
	old, new *dataplane.ServicePort
}

func (c change) id() dataplane.PortID {
	if c.new != nil {
		return c.new.ID
	}
	return c.old.ID
}

// model is what one family's tables hold, as far as it takes to write a change
// without a look at them: the trees and who shares what. The rules themselves
// are a function of the ServicePorts and are not kept.
type model struct {
	env       env
	frontends *tree
	nodePorts *tree
	addresses *tree
	hairpin   *tree
	health    *tree
	vips      *tree
	owners    map[string]*dataplane.ServicePort // by portHash, to find two of the same
}

// Greatest depths of the trees. nft refuses a ruleset in which a chain is 16
// jumps or gotos away from the hook. Above the trees are SERVICES and MARKED, below
// them are at most four: sources, entry, pool and a fixed chain; for a NodePort
// both trees and their roots: 2 + 1 + 1 + 1 + 6 + 4 = 15.
const (
	depthFrontends = 8
	depthNodePorts = 6
	depthAddresses = 1
	depthHairpin   = 9
	depthHealth    = 7
	depthVIPs      = 9
)

// newModel is the model of tables that hold nothing.
func newModel(e env) *model {
	n := addrDigits(e.family)
	m := &model{
		env:       e,
		frontends: newTree(tableNAT, layout{root: chainFrontends, prefix: prefixFrontend, flag: "-d", addr: n}, depthFrontends),
		nodePorts: newTree(tableNAT, layout{root: chainNodePorts, prefix: prefixNodePort}, depthNodePorts),
		addresses: newTree(tableNAT, layout{root: chainAddresses, prefix: prefixAddress, flag: "-d", addr: n}, depthAddresses),
		hairpin:   newTree(tableNAT, layout{root: chainHairpin, prefix: prefixHairpin, flag: "-s", addr: n}, depthHairpin),
		health:    newTree(tableFilter, layout{root: chainHealth, prefix: prefixHealth}, depthHealth),
		vips:      newTree(tableFilter, layout{root: chainVIPs, prefix: prefixVIP, flag: "-d", addr: n}, depthVIPs),
		owners:    map[string]*dataplane.ServicePort{},
	}
	for _, a := range e.addresses {
		m.addresses.Put(prefixKey(a), addressTarget(a))
	}
	return m
}

func (m *model) trees() []*tree {
	return []*tree{m.frontends, m.nodePorts, m.addresses, m.hairpin, m.health, m.vips}
}

// delta is what has to be written.
type delta struct {
	write  map[string][]chain // by table
	remove map[string][]string
	// keep, if set, tells whether a chain must be written, and may complete it.
	keep func(table string, c *chain) bool
}

func newDelta() *delta { return &delta{write: map[string][]chain{}, remove: map[string][]string{}} }

func (d *delta) put(table string, chains ...chain) {
	for _, c := range chains {
		if d.keep == nil || d.keep(table, &c) {
			d.write[table] = append(d.write[table], c)
		}
	}
}

// apply moves the model on and adds to d what to write for it. The changes must
// have passed vet.
func (m *model) apply(changes []change, next env, d *delta) {
	m.applyEnv(next, d)
	before := m.env
	m.env = next
	ed := edits{}
	for _, c := range changes {
		m.applyPort(c, &before, d, ed)
	}
	ed.run()
	for _, t := range m.trees() {
		t.flush(d)
	}
}

// start is apply to a model of empty tables: all chains are written.
func (m *model) start(changes []change, d *delta) {
	d.put(tableFilter, filterConstants(&m.env)...)
	d.put(tableNAT, natConstants(&m.env)...)
	m.apply(changes, m.env, d)
}

// applyEnv writes the constant chains that another env changes.
func (m *model) applyEnv(next env, d *delta) {
	if m.env.equal(&next) {
		return
	}
	differing(natConstants(&m.env), natConstants(&next), tableNAT, d)
	differing(filterConstants(&m.env), filterConstants(&next), tableFilter, d)
	ed := edits{}
	for _, a := range m.env.addresses {
		ed.unshare(m.addresses, prefixKey(a))
	}
	for _, a := range next.addresses {
		ed.share(m.addresses, prefixKey(a), addressTarget(a))
	}
	ed.run()
}

// differing puts the chains that differ, and removes those that are gone.
func differing(old, cur []chain, table string, d *delta) {
	before := make(map[string]string, len(old))
	for _, c := range old {
		before[c.name] = c.body
	}
	for _, c := range cur {
		if body, was := before[c.name]; !was || body != c.body {
			c.fresh = !was
			d.put(table, c)
		}
		delete(before, c.name)
	}
	for _, c := range old {
		if _, gone := before[c.name]; gone {
			d.remove[table] = append(d.remove[table], c.name)
		}
	}
}

// applyPort writes one ServicePort's own chains and notes what it changes in
// the trees.
func (m *model) applyPort(c change, before *env, d *delta, ed edits) {
	var old, cur portRules
	if c.old != nil {
		old = renderPort(c.old, before)
		m.shared(c.old, ed.unshareAny)
	}
	if c.new != nil {
		cur = renderPort(c.new, &m.env)
		m.shared(c.new, ed.share)
	}
	differing(old.chains, cur.chains, tableNAT, d)
	if c.old != nil {
		delete(m.owners, portHash(c.old.ID))
	}
	if c.new != nil {
		m.owners[portHash(c.new.ID)] = c.new
	}
	for _, e := range old.entries {
		ed.unshare(m.treeOf(e), e.key)
	}
	for _, e := range cur.entries {
		ed.share(m.treeOf(e), e.key, e.value)
	}
}

func (m *model) treeOf(e entry) *tree {
	if e.nodePort {
		return m.nodePorts
	}
	return m.frontends
}

// shared walks the entries that several ServicePorts may have in common.
func (m *model) shared(p *dataplane.ServicePort, do func(*tree, string, string)) {
	seen := map[netip.Addr]bool{}
	hairpin := " " + strings.TrimSuffix(setMark(m.env.marks.masquerade, m.env.marks.masquerade), "\n")
	for _, f := range p.Frontends {
		if f.Kind == dataplane.ClusterIP {
			do(m.vips, addrKey(f.Addr.Addr()), " -g "+chainRefuse)
		}
		for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
			if pool == nil {
				continue
			}
			for _, e := range pool.Endpoints {
				if a := e.Addr.Addr(); e.MayBeHere() && !seen[a] {
					seen[a] = true
					do(m.hairpin, addrKey(a), " -d "+netip.PrefixFrom(a, a.BitLen()).String()+hairpin)
				}
			}
		}
	}
	if p.HealthCheck != nil {
		do(m.health, portKey(dataplane.TCP, p.HealthCheck.Port), " -j ACCEPT")
	}
}

// addressTarget is where packets to an address of the node go. Nobody but the
// node itself has business with its loopback addresses.
func addressTarget(a netip.Prefix) string {
	if a.Addr().IsLoopback() {
		return " -m addrtype --src-type LOCAL -g " + chainNodePorts
	}
	return " -g " + chainNodePorts
}

// errTaken says that two ServicePorts want the same thing.
var errTaken = errors.New("taken by another Service port")

// vet finds the changes that cannot be written, before anything is.
func (m *model) vet(changes []change) refused {
	bad := refused{}
	freed := map[treeKey]bool{}
	for _, c := range changes {
		if c.old != nil {
			for i := range c.old.Frontends {
				freed[m.keyOf(c.old, i)] = true
			}
		}
	}
	taken := map[treeKey]bool{}
	hashes := map[string]bool{}
	for _, c := range changes {
		if c.new == nil {
			continue
		}
		err := vetPort(c.new)
		if err == nil {
			err = m.vetFrontends(c.new, freed, taken)
		}
		h := portHash(c.new.ID)
		if owner, have := m.owners[h]; have && owner.ID != c.new.ID || hashes[h] {
			err = fmt.Errorf("the names of its chains, %s: %w", h, errTaken)
		}
		if err != nil {
			bad[c.id()] = err
			continue
		}
		hashes[h] = true
		for i := range c.new.Frontends {
			taken[m.keyOf(c.new, i)] = true
		}
	}
	return bad
}

func (m *model) vetFrontends(p *dataplane.ServicePort, freed, taken map[treeKey]bool) error {
	for i, f := range p.Frontends {
		at := m.keyOf(p, i)
		if _, have := at.tree.Get(at.key); have && !freed[at] || taken[at] {
			return fmt.Errorf("frontend %s %s: %w", f.Kind, f.Addr, errTaken)
		}
	}
	return nil
}

// treeKey is a place in a tree.
type treeKey struct {
	tree *tree
	key  string
}

func (m *model) keyOf(p *dataplane.ServicePort, i int) treeKey {
	e := entryOf(p, &p.Frontends[i])
	return treeKey{m.treeOf(e), e.key}
}

// tree is a tree of chains in one table. Several ServicePorts may share an
// entry, which stays until the last of them goes.
type tree struct {
	*buckettree.Tree
	layout  layout
	table   string
	shares  map[string]int      // owners of a key, where it has more than one
	written map[string]struct{} // the nodes that have been told of
}

func newTree(table string, l layout, depth int) *tree {
	return &tree{Tree: buckettree.New(depth), layout: l, table: table, shares: map[string]int{}, written: map[string]struct{}{}}
}

// flush tells which chains to write for the nodes that changed.
func (t *tree) flush(d *delta) {
	for _, id := range t.Changed() {
		name := t.layout.chain(id)
		_, was := t.written[id]
		nd, is := t.Node(id)
		switch {
		case is:
			t.written[id] = struct{}{}
			d.put(t.table, chain{name: name, body: t.render(nd), rank: t.rank(id), fresh: !was})
		case was:
			delete(t.written, id)
			d.remove[t.table] = append(d.remove[t.table], name)
		}
	}
}

// rank puts a node behind all that are below it.
func (t *tree) rank(id string) rank {
	r := rankHook - 1 - rank(len(id))
	if t.layout.root == chainAddresses { // leads to the NodePorts
		return r
	}
	return max(r-rankHook/2, rankTree)
}

// render writes the rules of a node. A packet goes to a child for good, unless
// the node has an entry of its own to try after that.
func (t *tree) render(nd buckettree.Node) string {
	var b []byte
	how := " -g "
	if len(nd.Entries) > 0 {
		how = " -j "
	}
	for _, child := range nd.Children {
		b = t.rule(b, nd.ID, child, how+t.layout.chain(child))
	}
	for _, e := range nd.Entries {
		b = t.rule(b, nd.ID, e.Key, e.Value)
	}
	return string(b)
}

func (t *tree) rule(to []byte, node, key, end string) []byte {
	start := len(to)
	to = t.layout.match(to, len(node), key)
	to = append(append(to, end...), '\n')
	return append(to[:start], to[start+1:]...) // less the space in front
}

// edits gathers what several changes do to the trees, so that an entry which
// moves from one ServicePort to another is one edit.
type edits map[*tree]map[string]*edit

type edit struct {
	owners int    // that come, less those that go
	value  string // "": as it is
}

func (ed edits) at(t *tree, key string) *edit {
	keys, ok := ed[t]
	if !ok {
		keys = map[string]*edit{}
		ed[t] = keys
	}
	e, ok := keys[key]
	if !ok {
		e = &edit{}
		keys[key] = e
	}
	return e
}

// share notes a new owner of a key, and the entry's value from now on.
func (ed edits) share(t *tree, key, value string) {
	e := ed.at(t, key)
	e.owners++
	e.value = value
}

// unshare notes that an owner of a key is gone.
func (ed edits) unshare(t *tree, key string) { ed.at(t, key).owners-- }

func (ed edits) unshareAny(t *tree, key, _ string) { ed.unshare(t, key) }

// run does the edits.
func (ed edits) run() {
	for t, keys := range ed {
		for key, e := range keys {
			t.edit(key, e)
		}
	}
}

func (t *tree) edit(key string, e *edit) {
	value, found := t.Get(key)
	owners := e.owners
	if found {
		owners += max(t.shares[key], 1)
	}
	if e.value != "" {
		value = e.value
	}
	delete(t.shares, key)
	switch {
	case owners <= 0:
		t.Delete(key)
		return
	case owners > 1:
		t.shares[key] = owners
	}
	t.Put(key, value)
}

package iptables

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// tables are what the kernel holds, by table, as it was read back.
type tables map[string]*restore.Table

// held is what one family's tables hold, as far as it takes to write a change without
// reading them: the trees, and who shares what. The rules themselves follow from the
// ServicePorts and are not kept.
type held struct {
	node      node
	frontends *tree
	nodePorts *tree
	addresses *tree
	hairpin   *tree
	health    *tree
	vips      *tree
	ports     map[string]*dataplane.ServicePort // by portHash
}

// Greatest depths of the trees. nft refuses a ruleset in which a chain is 16
// jumps or gotos away from the hook. Above the trees are SERVICES and MARKED, below
// them are at most four: sources, choice, pool and a fixed chain; for a NodePort
// both trees and their roots: 2 + 1 + 1 + 1 + 6 + 4 = 15.
const (
	depthFrontends = 8
	depthNodePorts = 6
	depthAddresses = 1
	depthHairpin   = 9
	depthHealth    = 7
	depthVIPs      = 9
)

// newHeld returns what empty tables hold, of which start is to be called.
func newHeld(n node) *held {
	digits := addrDigits(n.family)
	h := &held{
		node:      n,
		frontends: newTree(restore.NAT, layout{root: chainFrontends, prefix: prefixFrontend, flag: "-d", addr: digits}, depthFrontends),
		nodePorts: newTree(restore.NAT, layout{root: chainNodePorts, prefix: prefixNodePort}, depthNodePorts),
		addresses: newTree(restore.NAT, layout{root: chainAddresses, prefix: prefixAddress, flag: "-d", addr: digits}, depthAddresses),
		hairpin:   newTree(restore.NAT, layout{root: chainHairpin, prefix: prefixHairpin, flag: "-s", addr: digits}, depthHairpin),
		health:    newTree(restore.Filter, layout{root: chainHealth, prefix: prefixHealth}, depthHealth),
		vips:      newTree(restore.Filter, layout{root: chainVIPs, prefix: prefixVIP, flag: "-d", addr: digits}, depthVIPs),
		ports:     map[string]*dataplane.ServicePort{},
	}
	for _, a := range n.addresses {
		h.addresses.Put(prefixKey(a), addressTarget(a))
	}
	return h
}

func (h *held) trees() []*tree {
	return []*tree{h.frontends, h.nodePorts, h.addresses, h.hairpin, h.health, h.vips}
}

// port returns a ServicePort as the tables hold it. Nil means that they do not.
func (h *held) port(id dataplane.PortID) *dataplane.ServicePort {
	if p := h.ports[portHash(id)]; p != nil && p.ID == id {
		return p
	}
	return nil
}

// change is one ServicePort that is added (old is nil), removed (new is nil) or replaced.
type change struct {
	old, new *dataplane.ServicePort
}

func (c change) id() dataplane.PortID {
	if c.new != nil {
		return c.new.ID
	}
	return c.old.ID
}

// additions returns the ServicePorts of a family, as changes to empty tables.
func additions(s *dataplane.Snapshot, f dataplane.Family) []change {
	var out []change
	for p := range s.Ports.All() {
		if p.ID.Family == f {
			out = append(out, change{new: p})
		}
	}
	return out
}

// changes returns the ServicePorts to write when these, which are held, become those
// that are wanted, and the node next.
func (h *held) changes(ports, want dataplane.Ports, next *node) []change {
	var out []change
	for old, cur := range dataplane.Diff(ports, want) {
		if c := (change{old, cur}); c.id().Family == next.family {
			out = append(out, c)
		}
	}
	if slices.Equal(next.pods, h.node.pods) {
		return out
	}
	for p := range want.All() { // those whose rules ask for pods are written again
		if p.ID.Family == next.family && ports.Get(p.ID) == p && slices.ContainsFunc(p.Frontends, hasInside) {
			out = append(out, change{p, p})
		}
	}
	return out
}

func hasInside(f dataplane.Frontend) bool { return f.Inside != nil }

// diff gathers what to write so that the tables hold what is wanted. For a full Sync
// it compares that with what was read back, for a change with what is held.
type diff struct {
	read   tables                     // nil: this is a change
	wanted map[string]map[string]bool // chains, by table; of a full Sync
	writes *restore.Writes
}

func newDiff(read tables) *diff {
	return &diff{read: read, wanted: map[string]map[string]bool{restore.Filter: {}, restore.NAT: {}}, writes: &restore.Writes{}}
}

// want has chains written, but for those that were read back as they are wanted.
func (d *diff) want(table string, chains ...restore.Chain) {
	for _, c := range chains {
		if d.read != nil {
			d.wanted[table][c.Name] = true
			differs, there := d.read[table].Differs(c)
			if !differs {
				continue
			}
			c.Fresh = !there
		}
		t := d.writes.Table(table)
		t.Write = append(t.Write, c)
	}
}

// drop has a chain removed that is held.
func (d *diff) drop(table, chain string) {
	if d.read != nil {
		return // rest removes what was read back and is not wanted
	}
	t := d.writes.Table(table)
	t.Remove = append(t.Remove, chain)
}

// rest ends the comparison with what was read back, and returns what to write.
func (d *diff) rest() *restore.Writes {
	for table, read := range d.read {
		read.Repair(d.wanted[table], jumpsOf(table), d.writes.Table(table))
	}
	d.writes.Trim()
	return d.writes
}

// compare has the chains written that differ, and removes those that are not wanted any more.
func (d *diff) compare(table string, old, cur []restore.Chain) {
	before := make(map[string]string, len(old))
	for _, c := range old {
		before[c.Name] = c.Body
	}
	for _, c := range cur {
		if body, was := before[c.Name]; !was || body != c.Body {
			c.Fresh = !was
			d.want(table, c)
		}
		delete(before, c.Name)
	}
	for _, c := range old {
		if _, gone := before[c.Name]; gone {
			d.drop(table, c.Name)
		}
	}
}

// start is apply for empty tables: it wants the constant chains as well.
func (h *held) start(changes []change, d *diff) {
	d.want(restore.Filter, filterConstants(&h.node)...)
	d.want(restore.NAT, natConstants(&h.node)...)
	h.apply(changes, h.node, d)
}

// apply takes the changes over and adds to d what to write for them. They must have
// passed vet.
func (h *held) apply(changes []change, next node, d *diff) {
	h.applyNode(next, d)
	before := h.node
	h.node = next
	ed := edits{}
	for _, c := range changes {
		h.applyPort(c, &before, d, ed)
	}
	ed.run()
	for _, t := range h.trees() {
		t.flush(d)
	}
}

// applyNode writes the constant chains that another node changes.
func (h *held) applyNode(next node, d *diff) {
	if h.node.equal(&next) {
		return
	}
	d.compare(restore.NAT, natConstants(&h.node), natConstants(&next))
	d.compare(restore.Filter, filterConstants(&h.node), filterConstants(&next))
	ed := edits{}
	for _, a := range h.node.addresses {
		ed.unshare(h.addresses, prefixKey(a))
	}
	for _, a := range next.addresses {
		ed.share(h.addresses, prefixKey(a), addressTarget(a))
	}
	ed.run()
}

// applyPort writes one ServicePort's own chains and notes what it changes in
// the trees.
func (h *held) applyPort(c change, before *node, d *diff, ed edits) {
	var old, cur plan
	if c.old != nil {
		old = planFor(c.old, before)
		h.shared(c.old, ed.unshareAny)
	}
	if c.new != nil {
		cur = planFor(c.new, &h.node)
		h.shared(c.new, ed.share)
	}
	d.compare(restore.NAT, old.chains, cur.chains)
	if c.old != nil {
		delete(h.ports, portHash(c.old.ID))
	}
	if c.new != nil {
		h.ports[portHash(c.new.ID)] = c.new
	}
	for _, e := range old.entries {
		ed.unshare(h.treeOf(e), e.key)
	}
	for _, e := range cur.entries {
		ed.share(h.treeOf(e), e.key, e.value)
	}
}

func (h *held) treeOf(e entry) *tree {
	if e.nodePort {
		return h.nodePorts
	}
	return h.frontends
}

// shared walks the entries that several ServicePorts may have in common.
func (h *held) shared(p *dataplane.ServicePort, do func(*tree, string, string)) {
	seen := map[netip.Addr]bool{}
	hairpin := " " + strings.TrimSuffix(setMark(h.node.bit, h.node.bit), "\n")
	for _, f := range p.Frontends {
		if f.Kind == dataplane.ClusterIP {
			do(h.vips, addrKey(f.Addr.Addr()), " -g "+chainRefuse)
		}
		for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
			if pool == nil {
				continue
			}
			for _, e := range pool.Endpoints {
				if a := e.Addr.Addr(); e.MayBeHere() && !seen[a] {
					seen[a] = true
					do(h.hairpin, addrKey(a), " -d "+netip.PrefixFrom(a, a.BitLen()).String()+hairpin)
				}
			}
		}
	}
	if p.HealthCheck != nil {
		do(h.health, portKey(dataplane.TCP, p.HealthCheck.Port), " -j ACCEPT")
	}
}

// addressTarget returns where packets to an address of the node go. Nobody but the
// node itself has business with its loopback addresses.
func addressTarget(a netip.Prefix) string {
	if isLoopback(a) {
		return " -m addrtype --src-type LOCAL -g " + chainNodePorts
	}
	return " -g " + chainNodePorts
}

// edits gathers what several changes do to the trees, so that an entry which
// moves from one ServicePort to another is one edit.
type edits map[*tree]map[string]*edit

type edit struct {
	owners int    // that are added, less those that are removed
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

// Package watcher is API objects (or manifest files) in, Snapshots out; every policy is decided here, once.
//
// A source (packages kube and manifests) tells the Watcher of objects as facts.
// They are noted and reported to whoever takes Snapshots. When that one is ready
// for the next, package policy makes ServicePorts of what changed meanwhile, and
// the Snapshot shares all the rest with the one before it. Which events led
// there does not show: a Snapshot depends on the objects alone.
package watcher

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Source is where objects come from.
type Source interface {
	// Run tells apply what it knows until the context ends. It tries again by
	// itself whatever fails; an error means that it cannot ever work. Calls of
	// apply are one at a time for each kind of object.
	Run(ctx context.Context, apply func(facts.Change)) error
}

// Watcher turns what sources tell into Snapshots. Nothing is ever taken back
// because a source fell silent.
//
// Where kube-proxy exits to be started anew (the Node's addresses or pod ranges
// change, the Node is deleted), a Watcher follows: the next Snapshot has what
// is new, and a deleted Node's last facts stay in force.
type Watcher struct {
	set     settings
	changed func()
	losses  losses

	mu       sync.Mutex
	services map[facts.Name]*service
	slices   map[facts.Name]*facts.Slice
	cidrs    map[facts.Name]*facts.ServiceCIDR
	claims   claims
	node     *facts.Node // the last one seen, with what is kept of those before it; nil: none yet
	kept     keptFacts
	// mostNodes is the most nodes that endpoints were seen on at once.
	mostNodes int
	nodeGone  bool           // the Node is not there (any more)
	local     []netip.Prefix // what is local on this node, see addrs.Follow
	moved     bool           // what is around the Services changed: node, local or cidrs
	env       policy.Env
	dirty     worklist
	waits     waits
	started   bool                // what the first Snapshot waits for is there
	snapshot  *dataplane.Snapshot // the last built; nil: none yet
	triggers  []time.Time         // of the changes since then
	stats     Stats
}

// service is one Service and what belongs to it. It exists while there is
// something to keep: EndpointSlices may come before their Service.
type service struct {
	name      facts.Name
	facts     *facts.Service    // nil: not known
	frontends []policy.Frontend // that it wants
	claims    []claim           // on each of them
	slices    []*facts.Slice    // sorted by name
	ports     []*dataplane.ServicePort
	dirty     bool // is on the worklist
}

// worklist is the services to be built anew. It is no set, because a Go map that
// once held every service costs a walk over all its room ever after.
type worklist []*service

func (l *worklist) add(s *service) {
	if !s.dirty {
		s.dirty = true
		*l = append(*l, s)
	}
}

// take empties the list.
func (l *worklist) take() []*service {
	all := *l
	*l = nil
	for _, s := range all {
		s.dirty = false
	}
	return all
}

// New makes a Watcher that calls changed when Next may have a new Snapshot: as
// often as that is so, many times for one Snapshot. changed must return quickly
// and must not call the Watcher.
func New(o Options, changed func()) (*Watcher, error) {
	set, err := newSettings(o)
	if err != nil {
		return nil, err
	}
	return &Watcher{
		set:      set,
		changed:  changed,
		kept:     keptFacts{log: set.Log, nodeWait: set.NodeWait, podCIDRWait: set.PodCIDRWait},
		losses:   losses{log: set.Log, report: set.Conflict},
		services: map[facts.Name]*service{},
		slices:   map[facts.Name]*facts.Slice{},
		cidrs:    map[facts.Name]*facts.ServiceCIDR{},
		claims:   newClaims(),
	}, nil
}

// Run follows a source and this node's addresses until the context ends; its
// error is nil then.
func (w *Watcher) Run(ctx context.Context, source Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 2)
	go func() {
		if err := w.set.Addresses(ctx, w.SetAddresses); err != nil && ctx.Err() == nil {
			errs <- fmt.Errorf("following the node's addresses: %w", err)
			cancel()
			return
		}
		errs <- nil
	}()
	go func() {
		err := source.Run(ctx, w.Apply)
		if ctx.Err() != nil {
			err = nil
		}
		if err != nil {
			cancel()
		}
		errs <- err
	}()
	err := <-errs
	if second := <-errs; err == nil {
		err = second
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits.stop()
	w.kept.stop()
	return err
}

// SetAddresses takes what is local on this node, as addrs.Follow reports it. Run
// calls it. A caller without Run must, or there is no Snapshot.
func (w *Watcher) SetAddresses(local []netip.Prefix) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local, w.waits.addresses, w.moved = local, true, true
	w.advance()
}

// Apply takes one step of what a source knows.
func (w *Watcher) Apply(c facts.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	applyDelta(c.Services, w.services, func(s *service) bool { return s.facts != nil }, w.putService, w.removeService)
	applyDelta(c.Slices, w.slices, nil, w.putSlice, w.removeSlice)
	applyDelta(c.ServiceCIDRs, w.cidrs, nil,
		func(c *facts.ServiceCIDR) facts.Name { w.cidrs[c.Name], w.moved = c, true; return c.Name },
		func(n facts.Name) { delete(w.cidrs, n); w.moved = true })
	w.putNode(c.Nodes)
	w.waits.services = w.waits.services || c.Services.All
	w.waits.slices = w.waits.slices || c.Slices.All
	w.advance()
}

// applyDelta puts and removes; where the Delta is all that there is, it also
// removes what is there besides.
func applyDelta[T, E any](d facts.Delta[T], have map[facts.Name]E, there func(E) bool, put func(*T) facts.Name, remove func(facts.Name)) {
	for _, name := range d.Remove {
		remove(name)
	}
	if !d.All {
		for _, obj := range d.Put {
			put(obj)
		}
		return
	}
	kept := make(map[facts.Name]struct{}, len(d.Put))
	for _, obj := range d.Put {
		kept[put(obj)] = struct{}{}
	}
	for name, e := range have {
		if _, ok := kept[name]; !ok && (there == nil || there(e)) {
			remove(name)
		}
	}
}

func (w *Watcher) service(name facts.Name) *service {
	s := w.services[name]
	if s == nil {
		s = &service{name: name}
		w.services[name] = s
	}
	return s
}

// forget drops a service that holds nothing.
func (w *Watcher) forget(s *service) {
	if s.facts == nil && len(s.slices) == 0 && len(s.ports) == 0 {
		delete(w.services, s.name)
	}
}

func (w *Watcher) putService(f *facts.Service) facts.Name {
	s := w.service(f.Name)
	w.stats.ServiceChanges++
	if s.facts != nil && s.facts.Equal(f) {
		return f.Name
	}
	w.claim(s, f)
	return f.Name
}

func (w *Watcher) removeService(name facts.Name) {
	s := w.services[name]
	if s == nil || s.facts == nil {
		return
	}
	w.stats.ServiceChanges++
	w.claim(s, nil)
}

// claim gives a service its facts, and its frontends to whom they are due now.
func (w *Watcher) claim(s *service, f *facts.Service) {
	told := s.told()
	w.claims.remove(s, &w.dirty)
	s.facts, s.frontends = f, nil
	if f != nil {
		s.frontends = policy.Frontends(f, w.set.Families, w.set.ExternalIPs)
	}
	w.claims.add(s, told, &w.dirty)
	w.dirty.add(s)
}

func (w *Watcher) putSlice(f *facts.Slice) facts.Name {
	w.stats.SliceChanges++
	old := w.slices[f.Name]
	if old != nil && old.Equal(f) {
		return f.Name // an annotation changed, or nothing that counts
	}
	if old != nil && old.Service != f.Service {
		w.detach(old)
	}
	w.slices[f.Name] = f
	s := w.service(facts.Name{Namespace: f.Name.Namespace, Name: f.Service})
	s.slices = withSlice(s.slices, f)
	w.dirty.add(s)
	if !f.Trigger.IsZero() && w.set.Programming != nil && w.snapshot != nil {
		w.triggers = append(w.triggers, f.Trigger)
	}
	return f.Name
}

func (w *Watcher) removeSlice(name facts.Name) {
	if old := w.slices[name]; old != nil {
		w.stats.SliceChanges++
		delete(w.slices, name)
		w.detach(old)
	}
}

// detach takes a slice from its service.
func (w *Watcher) detach(f *facts.Slice) {
	s := w.service(facts.Name{Namespace: f.Name.Namespace, Name: f.Service})
	s.slices = withoutSlice(s.slices, f)
	w.dirty.add(s)
}

func (w *Watcher) putNode(d facts.Delta[facts.Node]) {
	if len(d.Put) == 0 {
		w.nodeGone = w.nodeGone || d.All || len(d.Remove) > 0
		return
	}
	node := w.kept.complete(d.Put[len(d.Put)-1], w.node, w.forgetNode)
	w.moved = w.moved || w.node == nil || !w.node.Equal(node)
	w.node, w.nodeGone = node, false
}

// forgetNode takes the Node for what it says, now that it had its time to say more.
func (w *Watcher) forgetNode() {
	w.mu.Lock()
	defer w.mu.Unlock()
	node := w.kept.complete(w.kept.said, w.node, w.forgetNode)
	w.moved = w.moved || !w.node.Equal(node)
	w.node = node
	w.advance()
}

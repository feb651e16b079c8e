package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// mostInPool is how many endpoints a pool can have.
const mostInPool = 1 << 20

// plan is what the kernel holds, or shall hold, of one ServicePort.
type plan struct {
	master    programs.SockService
	pools     [programs.MaxPools]*dataplane.Pool // what the master's pools hold; nil: not in use
	slots     uint32                             // number of slots in the master's generation
	frontends []element
	damaged   bool // the slots are not what the master says: write them again
}

// entry is an element of the frontends map.
type element struct {
	key   programs.SockFrontendKey
	value programs.SockFrontend
}

// find returns the frontend with a key. Nil means that the plan has none.
func (p *plan) find(key programs.SockFrontendKey) *element {
	if p == nil {
		return nil
	}
	for i := range p.frontends {
		if p.frontends[i].key == key {
			return &p.frontends[i]
		}
	}
	return nil
}

// only returns the plan without the frontends that are not wanted, and the keys of
// those.
func (p *plan) only(wanted map[programs.SockFrontendKey]struct{}) (less *plan, gone []programs.SockFrontendKey) {
	some := *p
	some.frontends = nil
	for _, e := range p.frontends {
		if _, ok := wanted[e.key]; ok {
			some.frontends = append(some.frontends, e)
		} else {
			gone = append(gone, e.key)
		}
	}
	return &some, gone
}

// planFor returns what the kernel shall hold of a ServicePort, given what it holds now
// (nil: nothing) under the same id. Whatever can stay as it is stays:
// the generation and the indexes of pools.
func planFor(old *plan, port *dataplane.ServicePort, id uint32) (*plan, error) {
	next := &plan{master: programs.SockService{Id: id, AffinityS: uint32(port.Affinity / time.Second)}}
	indexes, err := assignPools(old, port, &next.pools)
	if err != nil {
		return nil, err
	}
	next.frontends = make([]element, len(port.Frontends))
	for i, f := range port.Frontends {
		key := programs.ToFrontendKey(f, port.ID.Protocol)
		next.frontends[i] = element{key, programs.ToFrontend(key, id, indexes[i].pool, indexes[i].inside)}
	}
	if old != nil && !old.damaged && samePools(&old.pools, &next.pools) {
		affinity := next.master.AffinityS
		next.master, next.slots = old.master, old.slots
		next.master.AffinityS = affinity
		next.master = programs.Sealed(next.master)
		return next, nil
	}
	next.master.Generation = 1
	if old != nil {
		next.master.Generation = old.master.Generation + 1
	}
	next.slots = layOut(&next.master, &next.pools, 0)
	next.master = programs.Sealed(next.master)
	return next, nil
}

// layOut gives each pool its run of slots from first on, equal pools the same
// one, and tells where the slots end.
func layOut(master *programs.SockService, pools *[programs.MaxPools]*dataplane.Pool, first uint32) uint32 {
	for i, p := range pools {
		if p == nil {
			continue
		}
		if j := slices.IndexFunc(pools[:i], func(q *dataplane.Pool) bool { return q != nil && samePool(p, q) }); j >= 0 {
			master.Pools[i] = master.Pools[j]
			continue
		}
		master.Pools[i].First, master.Pools[i].Count = first, uint32(len(p.Endpoints))
		first += uint32(len(p.Endpoints))
	}
	return first
}

// indexPair is which pools a frontend uses.
type indexPair struct{ pool, inside uint8 }

var errTooManyPools = errors.New("its frontends need more different pools than the master entry has room for (8, the old ones and the new ones together)")

// assignPools gives each pool of a ServicePort an index and tells those of each
// frontend. Indexes stay as they are where that is possible. Where it is not
// (two frontends shared a pool and do not any more), all pools get indexes that
// were not in use, so that the old ones can stay until the last frontend turned.
func assignPools(old *plan, port *dataplane.ServicePort, pools *[programs.MaxPools]*dataplane.Pool) ([]indexPair, error) {
	for _, p := range port.Frontends {
		if len(p.Pool.Endpoints) > mostInPool || p.Inside != nil && len(p.Inside.Endpoints) > mostInPool {
			return nil, fmt.Errorf("a pool has more than %d endpoints", mostInPool)
		}
	}
	if indexes, ok := keepIndexes(old, port, pools); ok {
		return indexes, nil
	}
	*pools = [programs.MaxPools]*dataplane.Pool{}
	indexes := make([]indexPair, len(port.Frontends))
	for i, f := range port.Frontends {
		a, okA := indexFor(pools, old, f.Pool)
		b, okB := indexFor(pools, old, insideOf(f))
		if !okA || !okB {
			return nil, errTooManyPools
		}
		indexes[i] = indexPair{a, b}
	}
	return indexes, nil
}

// keepIndexes tries to leave every index as it is.
func keepIndexes(old *plan, port *dataplane.ServicePort, pools *[programs.MaxPools]*dataplane.Pool) ([]indexPair, bool) {
	claim := func(i uint8, p *dataplane.Pool) bool {
		if int(i) >= programs.MaxPools || pools[i] != nil && !samePool(pools[i], p) {
			return false
		}
		pools[i] = p
		return true
	}
	indexes := make([]indexPair, len(port.Frontends))
	var fresh []int
	for i, f := range port.Frontends {
		e := old.find(programs.ToFrontendKey(f, port.ID.Protocol))
		if e == nil {
			fresh = append(fresh, i)
			continue
		}
		indexes[i] = indexPair{e.value.Pool, e.value.Inside}
		if !claim(e.value.Pool, f.Pool) || !claim(e.value.Inside, insideOf(f)) {
			return nil, false
		}
	}
	for _, i := range fresh {
		a, okA := indexFor(pools, old, port.Frontends[i].Pool)
		b, okB := indexFor(pools, old, insideOf(port.Frontends[i]))
		if !okA || !okB {
			return nil, false
		}
		indexes[i] = indexPair{a, b}
	}
	return indexes, true
}

// indexFor finds a pool's index, or takes one that neither the new nor the old plan
// uses.
func indexFor(pools *[programs.MaxPools]*dataplane.Pool, old *plan, p *dataplane.Pool) (uint8, bool) {
	for i, q := range pools {
		if q != nil && samePool(p, q) {
			return uint8(i), true
		}
	}
	for i, q := range pools {
		if q == nil && (old == nil || old.pools[i] == nil) {
			pools[i] = p
			return uint8(i), true
		}
	}
	return 0, false
}

func insideOf(f dataplane.Frontend) *dataplane.Pool {
	if f.Inside != nil {
		return f.Inside
	}
	return f.Pool
}

// samePool reports whether two pools have the same endpoints.
func samePool(a, b *dataplane.Pool) bool {
	return a == b || slices.EqualFunc(a.Endpoints, b.Endpoints, func(x, y dataplane.Endpoint) bool { return x.Addr == y.Addr })
}

func samePools(a, b *[programs.MaxPools]*dataplane.Pool) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) || a[i] != nil && !samePool(a[i], b[i]) {
			return false
		}
	}
	return true
}

// onlyIn returns the pools of old at indexes that next does not use.
func onlyIn(old, next *[programs.MaxPools]*dataplane.Pool) (pools [programs.MaxPools]*dataplane.Pool, some bool) {
	for i, p := range old {
		if p != nil && next[i] == nil {
			pools[i], some = p, true
		}
	}
	return pools, some
}

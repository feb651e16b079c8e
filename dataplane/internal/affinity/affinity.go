// Package affinity numbers ServicePorts for the memory of their clients, which packets write.
package affinity

import (
	"hash/fnv"
	"sync"

	"github.com/switchyard-io/switchyard/dataplane"
)

// IDs are the numbers of ServicePorts with affinity. A number follows from the
// ServicePort's name, so that affinity outlives a restart. If two names give the
// same one, as somebody may choose them to, the later ServicePort gets the next free
// number, and keeps it as long as the kernel does.
type IDs struct {
	mu     sync.Mutex
	byPort map[dataplane.PortID]uint32
	taken  map[uint32]bool
}

// NewIDs returns none yet.
func NewIDs() *IDs { return &IDs{byPort: map[dataplane.PortID]uint32{}, taken: map[uint32]bool{}} }

// Resume returns the numbers that ServicePorts have in the kernel, as held tells; 0:
// none. Of two that have the same one the second gets another.
func Resume(ports dataplane.Ports, held func(*dataplane.ServicePort) uint32) *IDs {
	i := NewIDs()
	for port := range ports.All() {
		if port.Affinity == 0 {
			continue
		}
		if id := held(port); id != 0 && !i.taken[id] {
			i.byPort[port.ID], i.taken[id] = id, true
		}
	}
	return i
}

// Of returns a ServicePort's number, which is 0 if it has no affinity.
func (i *IDs) Of(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	id := i.find(port)
	i.byPort[port.ID], i.taken[id] = id, true
	return id
}

// Known returns the number that a ServicePort was given; 0: none. i may be nil.
func (i *IDs) Known(port *dataplane.ServicePort) uint32 {
	if i == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.byPort[port.ID]
}

// Look returns the number that a ServicePort has or would get, and gives it none.
func (i *IDs) Look(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.find(port)
}

func (i *IDs) find(port *dataplane.ServicePort) uint32 {
	if id, ok := i.byPort[port.ID]; ok {
		return id
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(port.ID.String())) // never fails
	id := h.Sum32()
	for id == 0 || i.taken[id] {
		id++
	}
	return id
}

// Forget gives up the number of a ServicePort that has no affinity any more.
func (i *IDs) Forget(old, cur *dataplane.ServicePort) {
	if cur != nil && cur.Affinity > 0 {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if id, ok := i.byPort[old.ID]; ok {
		delete(i.taken, id)
		delete(i.byPort, old.ID)
	}
}

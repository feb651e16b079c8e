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
// number.
type IDs struct {
	mu     sync.Mutex
	byPort map[dataplane.PortID]uint32
	taken  map[uint32]bool
}

// NewIDs returns none yet.
func NewIDs() *IDs { return &IDs{byPort: map[dataplane.PortID]uint32{}, taken: map[uint32]bool{}} }

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

package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/switchyard-io/switchyard/dataplane"
)

// ids numbers the ServicePorts with affinity, for the memory of their clients. A
// number follows from the ServicePort's name, so that affinity outlives a
// restart. If two names give the same one, as somebody may choose them to, the
// later ServicePort gets the next free number.
type ids struct {
	mu     sync.Mutex
	byPort map[dataplane.PortID]uint32
	taken  map[uint32]bool
}

func newIDs() *ids { return &ids{byPort: map[dataplane.PortID]uint32{}, taken: map[uint32]bool{}} }

// of returns a ServicePort's number, which is 0 if it has no affinity.
func (i *ids) of(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	id := i.find(port)
	i.byPort[port.ID], i.taken[id] = id, true
	return id
}

// look returns the number that a ServicePort has or would get, and gives it none.
func (i *ids) look(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.find(port)
}

func (i *ids) find(port *dataplane.ServicePort) uint32 {
	if id, ok := i.byPort[port.ID]; ok {
		return id
	}
	sum := sha256.Sum256([]byte(port.ID.String()))
	id := binary.BigEndian.Uint32(sum[:])
	for id == 0 || i.taken[id] {
		id++
	}
	return id
}

// forget gives up the number of a ServicePort that has no affinity any more.
func (i *ids) forget(old, cur *dataplane.ServicePort) {
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

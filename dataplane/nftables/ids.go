package nftables

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/switchyard-io/switchyard/dataplane"
)

// ids numbers the ServicePorts with affinity, for the memory of their clients. A
// number follows from the ServicePort's name, so that affinity outlives a
// restart. If two names give the same one, as somebody may choose them to, the
// later ServicePort gets the next free number.
type ids struct {
	byPort map[dataplane.PortID]uint32
	taken  map[uint32]bool
}

func newIDs() *ids { return &ids{byPort: map[dataplane.PortID]uint32{}, taken: map[uint32]bool{}} }

// of returns a ServicePort's number, which is 0 if it has no affinity.
func (i *ids) of(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	if id, ok := i.byPort[port.ID]; ok {
		return id
	}
	sum := sha256.Sum256([]byte(port.ID.String()))
	id := binary.BigEndian.Uint32(sum[:])
	for id == 0 || i.taken[id] {
		id++
	}
	i.byPort[port.ID], i.taken[id] = id, true
	return id
}

// forget gives up the number of a ServicePort that has no affinity any more.
func (i *ids) forget(old, cur *dataplane.ServicePort) {
	if cur != nil && cur.Affinity > 0 {
		return
	}
	if id, ok := i.byPort[old.ID]; ok {
		delete(i.taken, id)
		delete(i.byPort, old.ID)
	}
}

package nftables

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// ids numbers the ServicePorts with affinity, for the memory of their clients. A
// number is given to one ServicePort alone, and is not 0. The kernel holds them,
// so that affinity outlives a restart.
type ids struct {
	family dataplane.Family
	byPort map[dataplane.PortID]uint32
	held   map[string]uint32 // what the kernel held, by place
	taken  map[uint32]bool
	last   uint32
}

// readIDs takes the numbers from what the kernel holds.
func readIDs(f dataplane.Family, elements map[nft.Element]string) *ids {
	i := &ids{family: f, byPort: map[dataplane.PortID]uint32{}, held: map[string]uint32{}, taken: map[uint32]bool{0: true}}
	for e, data := range elements {
		for _, node := range []bool{false, true} {
			if e.Set == on(node, setIDs) {
				id := nft.NumberOf(data)
				i.held[e.Set+e.Key] = id
				i.last = max(i.last, id+1)
			}
		}
	}
	return i
}

// of returns a ServicePort's number: the one that it has, that the kernel holds
// for one of its places, or a new one.
func (i *ids) of(port *dataplane.ServicePort) uint32 {
	if port.Affinity == 0 {
		return 0
	}
	if id, ok := i.byPort[port.ID]; ok {
		return id
	}
	for _, f := range port.Frontends {
		place, node := placeOf(port, f)
		if id := i.held[on(node, setIDs)+place]; !i.taken[id] {
			return i.take(port.ID, id)
		}
	}
	for i.taken[i.last] {
		i.last++
	}
	return i.take(port.ID, i.last)
}

func (i *ids) take(port dataplane.PortID, id uint32) uint32 {
	i.byPort[port], i.taken[id] = id, true
	return id
}

// forget gives up the number of a ServicePort that has no affinity any more.
func (i *ids) forget(old, cur *dataplane.ServicePort) {
	if cur == nil || cur.Affinity == 0 {
		delete(i.taken, i.byPort[old.ID])
		delete(i.byPort, old.ID)
		i.taken[0] = true
	}
}

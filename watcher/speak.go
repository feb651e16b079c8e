package watcher

import (
	"hash/fnv"
	"math"
)

const (
	// speakers is how many nodes of a cluster report, roughly, what all of them
	// know of a Service.
	speakers = 3
	// mostLooked bounds the endpoints that are looked at to learn how many nodes
	// the cluster has.
	mostLooked = 1000
	// unknownNodes is how many it is taken to have until EndpointSlices are known.
	unknownNodes = 50
)

// Speaks reports whether this node is one of the few that write Events of what
// depends on a Service alone. A cluster of three nodes or less has all of them
// do so. In a larger one it is a matter of the Service's UID and the node's name.
func (w *Watcher) Speaks(uid string) bool {
	h := fnv.New64a()
	_, _ = h.Write([]byte(uid + "/" + w.set.NodeName))
	return float64(mix(h.Sum64()))/math.MaxUint64 < speakers/float64(max(w.nodes(), speakers))
}

// mix spreads what differs in the last bytes alone over all bits.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// nodes returns how many nodes some of the endpoints are on: a number that is
// not below that of the cluster's nodes by much, as long as these are no more
// than endpoints are looked at. It is the most that was ever seen: a tenant's
// many Services of one node say little.
func (w *Watcher) nodes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.waits.slices {
		return unknownNodes
	}
	seen, left := map[string]struct{}{}, mostLooked
	for _, s := range w.slices {
		for _, e := range s.Endpoints {
			if node := e.Place.Node(); node != "" {
				seen[node] = struct{}{}
			}
		}
		if left -= 1 + len(s.Endpoints); left < 0 {
			break
		}
	}
	w.mostNodes = max(w.mostNodes, len(seen))
	return w.mostNodes
}

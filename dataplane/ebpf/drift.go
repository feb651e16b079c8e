package ebpf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
)

// drift lists where the maps (h) are not as they were written.
func (b *sockets) drift(h *held) ([]string, error) {
	var out []string
	for id, r := range b.records {
		out = append(out, r.drift(id, h.records[r.master.Id])...)
	}
	known := map[uint32]bool{}
	for _, r := range b.records {
		known[r.master.Id] = true
	}
	for id := range h.records {
		if !known[id] {
			out = append(out, fmt.Sprintf("map services: entry %d is of no Service", id))
		}
	}
	for what, n := range map[string]int{
		"frontends": len(h.strayedFrontends), "slots": len(h.strayedSlots),
	} {
		if n > 0 {
			out = append(out, fmt.Sprintf("map %s: %d elements are of no Service", what, n))
		}
	}
	node, err := b.node.drift(b.maps.settings)
	out = append(out, node...)
	if b.holdsPods() != (b.node.settings.Flags&holdPods != 0) {
		out = append(out, "map settings: sockets of pods are left to packets, and should not be any more")
	}
	slices.Sort(out)
	return out, err
}

// drift is what differs between what was written of a ServicePort and what
// stands in the maps under its id (nil: nothing).
func (r *record) drift(id dataplane.PortID, have *record) []string {
	if have == nil {
		return []string{fmt.Sprintf("map services: the entry of %s is missing", id)}
	}
	var out []string
	if have.master != r.master {
		out = append(out, fmt.Sprintf("map services: the entry of %s is not as it was written", id))
	}
	if have.damaged || have.slots != r.slots || !sameUsed(&have.pools, &r.pools) {
		out = append(out, fmt.Sprintf("map slots: the endpoints of %s are not as they were written", id))
	}
	for _, e := range r.frontends {
		if f := have.find(e.key); f == nil || f.value != e.value {
			what := "is not as it was written"
			if f == nil {
				what = "is missing"
			}
			out = append(out, fmt.Sprintf("map frontends: %s of %s %s", fromAddrPort(e.key.Addr, e.key.Port), id, what))
		}
	}
	for _, e := range have.frontends {
		if r.find(e.key) == nil {
			out = append(out, fmt.Sprintf("map frontends: %s leads to %s and should not", fromAddrPort(e.key.Addr, e.key.Port), id))
		}
	}
	return out
}

// sameUsed compares the pools that both know of; one that no frontend uses is
// not read back.
func sameUsed(have, want *[maxPools]*dataplane.Pool) bool {
	for i := range have {
		if have[i] != nil && want[i] != nil && !samePool(have[i], want[i]) {
			return false
		}
	}
	return true
}

// drift lists where the maps of the node are not as they were written.
func (n *nodeState) drift(settings *ebpf.Map) ([]string, error) {
	out, err := n.addresses.drift()
	if err != nil {
		return nil, err
	}
	var have sockSettings
	if err := settings.Lookup(uint32(0), &have); err != nil {
		return nil, fmt.Errorf("reading the settings map: %w", err)
	}
	if have != n.settings {
		out = append(out, "map settings: it is not as it was written")
	}
	return out, nil
}

func (s *keySet[K]) drift() ([]string, error) {
	have := map[K]struct{}{}
	if err := dumpEach(s.kernel, func(k K, _ uint8) { have[k] = struct{}{} }); err != nil {
		return nil, err
	}
	missing, extra := 0, 0
	for k := range s.have {
		if _, ok := have[k]; !ok {
			missing++
		}
	}
	for k := range have {
		if _, ok := s.have[k]; !ok {
			extra++
		}
	}
	var out []string
	if missing > 0 {
		out = append(out, fmt.Sprintf("map %s: %d elements are missing", mapName(s.kernel), missing))
	}
	if extra > 0 {
		out = append(out, fmt.Sprintf("map %s: %d elements are not wanted", mapName(s.kernel), extra))
	}
	return out, nil
}

// problems splits an error that several were joined to.
func problems(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

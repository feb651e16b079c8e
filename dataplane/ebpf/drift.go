package ebpf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// drift lists where the maps are not as they were written.
func (b *sockets) drift(read *reading) ([]string, error) {
	var out []string
	for id, p := range b.held.ports {
		out = append(out, p.drift(id, read.plans[p.master.Id])...)
	}
	known := map[uint32]bool{}
	for _, p := range b.held.ports {
		known[p.master.Id] = true
	}
	for id := range read.plans {
		if !known[id] {
			out = append(out, fmt.Sprintf("map services: entry %d is of no Service", id))
		}
	}
	for what, n := range map[string]int{
		"frontends": len(read.strayedFrontends), "slots": len(read.strayedSlots),
	} {
		if n > 0 {
			out = append(out, fmt.Sprintf("map %s: %d elements are of no Service", what, n))
		}
	}
	node, err := b.held.node.drift(b.maps.settings)
	out = append(out, node...)
	if b.holdsPods() != (b.held.node.settings.Flags&programs.SockFlagHOLD_PODS != 0) {
		out = append(out, "map settings: sockets of pods are left to packets, and should not be any more")
	}
	slices.Sort(out)
	return out, err
}

// drift lists what differs between what was written of a ServicePort and what is in
// the maps under its id (nil: nothing).
func (p *plan) drift(id dataplane.PortID, have *plan) []string {
	if have == nil {
		return []string{fmt.Sprintf("map services: the entry of %s is missing", id)}
	}
	var out []string
	if have.master != p.master {
		out = append(out, fmt.Sprintf("map services: the entry of %s is not as it was written", id))
	}
	if have.damaged || have.slots != p.slots || !sameUsed(&have.pools, &p.pools) {
		out = append(out, fmt.Sprintf("map slots: the endpoints of %s are not as they were written", id))
	}
	for _, e := range p.frontends {
		if f := have.find(e.key); f == nil || f.value != e.value {
			what := "is not as it was written"
			if f == nil {
				what = "is missing"
			}
			out = append(out, fmt.Sprintf("map frontends: %s of %s %s", programs.FromAddrPort(e.key.Addr, e.key.Port), id, what))
		}
	}
	for _, e := range have.frontends {
		if p.find(e.key) == nil {
			out = append(out, fmt.Sprintf("map frontends: %s leads to %s and should not", programs.FromAddrPort(e.key.Addr, e.key.Port), id))
		}
	}
	return out
}

// sameUsed compares the pools that both know of; one that no frontend uses is
// not read back.
func sameUsed(have, want *[programs.MaxPools]*dataplane.Pool) bool {
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
	var have programs.SockSettings
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
	if err := programs.DumpEach(s.kernel, func(k K, _ uint8) { have[k] = struct{}{} }); err != nil {
		return nil, err
	}
	missing, extra := 0, 0
	for k := range s.held {
		if _, ok := have[k]; !ok {
			missing++
		}
	}
	for k := range have {
		if _, ok := s.held[k]; !ok {
			extra++
		}
	}
	var out []string
	if missing > 0 {
		out = append(out, fmt.Sprintf("map %s: %d elements are missing", programs.MapName(s.kernel), missing))
	}
	if extra > 0 {
		out = append(out, fmt.Sprintf("map %s: %d elements are not wanted", programs.MapName(s.kernel), extra))
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

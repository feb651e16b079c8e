package ebpf

import (
	"fmt"

	"github.com/switchyard-io/switchyard/dataplane"
)

// held is what the kernel holds, as this process left it.
type held struct {
	ports  map[dataplane.PortID]*plan // nil: unknown
	used   usage
	nextID uint32
	node   nodeState
	bound  bound // addresses of the node itself
	left   left  // what is left to the packet backend
}

// usage is how full the maps are, as the flags count it.
type usage struct {
	frontends, services, slots int
}

// account adds a plan to the usage (n 1), or takes it off (n -1).
func (h *held) account(p *plan, n int) {
	h.used.frontends += n * len(p.frontends)
	h.used.services += n
	h.used.slots += n * int(p.slots)
}

// fits reports whether there is room for next in place of old. The kernel's
// maps are larger than what is counted here (see setSizes), so that old and new
// can stand side by side for a moment.
func (h *held) fits(o Options, old, next *plan) error {
	var have plan
	n := 1
	if old != nil {
		have, n = *old, 0
	}
	for _, m := range []struct {
		name, flag      string
		used, grow, max int
	}{
		{"frontends", "--ebpf-max-frontends", h.used.frontends, len(next.frontends) - len(have.frontends), o.MaxFrontends},
		{"services", "--ebpf-max-frontends", h.used.services, n, o.MaxFrontends},
		{"slots", "--ebpf-max-endpoints", h.used.slots, int(next.slots) - int(have.slots), o.MaxEndpoints},
	} {
		if m.grow > 0 && m.used+m.grow > m.max {
			return fmt.Errorf("the %s map is full: it holds %d of %d and %d more are wanted; raise %s", m.name, m.used, m.max, m.grow, m.flag)
		}
	}
	return nil
}

// left says which ServicePorts are left to the packet backend, and why.
type left struct {
	why   map[dataplane.PortID]string
	count map[string]int // by reason
}

// set notes why a ServicePort is left. Empty means that it is not.
func (l *left) set(id dataplane.PortID, why string) {
	if old := l.why[id]; old != "" {
		delete(l.why, id)
		if l.count[old]--; l.count[old] == 0 {
			delete(l.count, old)
		}
	}
	if why == "" {
		return
	}
	if l.why == nil {
		l.why, l.count = map[dataplane.PortID]string{}, map[string]int{}
	}
	l.why[id] = why
	l.count[why]++
}

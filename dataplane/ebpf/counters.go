package ebpf

import (
	"fmt"
	"maps"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// events are the counters of bpf/stats.h in words, in its order.
func events() []string {
	return []string{
		"forwarded", "affinity_full", "socket_connect", "socket_send", "socket_not_recorded",
		"left_no_endpoint", "left_overtaken_by_updates", "left_bound_socket", "left_ambiguous_sender",
	}
}

// counts are what the programs count, how full the maps are and what is left to
// the packet backend.
func (b *sockets) counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	for i, event := range events() {
		var perCPU []uint64
		if err := b.all[sockMapStats].Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("reading the counters of the eBPF programs: %w", err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out = append(out, dataplane.Count{
			Name: "switchyard_ebpf_events_total", Help: "What the eBPF programs did at sockets, and why they left some to packets.", Grows: true,
			Labels: []dataplane.Label{{Name: "event", Value: event}}, Value: float64(sum),
		})
	}
	t := b.told.Load()
	if t == nil {
		t = &told{}
	}
	for _, m := range []struct {
		name      string
		have, max int
	}{
		{"frontends", t.used.frontends, b.opts.MaxFrontends},
		{"services", t.used.services, b.opts.MaxFrontends},
		{"endpoints", t.used.slots, b.opts.MaxEndpoints},
	} {
		labels := []dataplane.Label{{Name: "map", Value: m.name}}
		out = append(out,
			dataplane.Count{Name: "switchyard_map_entries", Help: "Entries of an eBPF map in use.", Labels: labels, Value: float64(m.have)},
			dataplane.Count{Name: "switchyard_map_capacity", Help: "Entries that an eBPF map can hold.", Labels: labels, Value: float64(m.max)})
	}
	if w := b.watching.Load(); w != nil {
		translated, left := w.Status()
		left["translated"] = translated
		for _, way := range slices.Sorted(maps.Keys(left)) {
			out = append(out, dataplane.Count{
				Name: "switchyard_sockets_pod_namespaces", Help: "Network namespaces of pods whose sockets are translated, or why they are left to packets.",
				Labels: []dataplane.Label{{Name: "way", Value: way}}, Value: float64(left[way]),
			})
		}
	}
	for _, why := range slices.Sorted(maps.Keys(t.aside)) {
		out = append(out, dataplane.Count{
			Name: "switchyard_sockets_left_service_ports", Help: "Service ports that sockets leave to the packet backend, in part or wholly, by reason.",
			Labels: []dataplane.Label{{Name: "reason", Value: why}}, Value: float64(t.aside[why]),
		})
	}
	return out, nil
}

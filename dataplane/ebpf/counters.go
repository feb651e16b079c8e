package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// events returns the word for each counter of bpf/stats.h.
func events() map[programs.SockStat]string {
	return map[programs.SockStat]string{
		programs.SockStatSTAT_FORWARDED:      "forwarded",
		programs.SockStatSTAT_AFFINITY_FULL:  "affinity_full",
		programs.SockStatSTAT_CONNECT:        "socket_connect",
		programs.SockStatSTAT_SEND:           "socket_send",
		programs.SockStatSTAT_NOT_RECORDED:   "socket_not_recorded",
		programs.SockStatSTAT_LEFT_EMPTY:     "left_no_endpoint",
		programs.SockStatSTAT_LEFT_OVERTAKEN: "left_overtaken_by_updates",
		programs.SockStatSTAT_LEFT_BOUND:     "left_bound_socket",
		programs.SockStatSTAT_LEFT_AMBIGUOUS: "left_ambiguous_sender",
	}
}

// counts returns what the programs count, how full the maps are and what is left to
// the packet backend.
func (b *sockets) counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	words := events()
	for _, stat := range slices.Sorted(maps.Keys(words)) {
		var perCPU []uint64
		if err := b.programs.Maps[programs.SockMapStats].Lookup(uint32(stat), &perCPU); err != nil {
			return nil, fmt.Errorf("reading the counters of the eBPF programs: %w", err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out = append(out, dataplane.Count{
			Name: "switchyard_ebpf_events_total", Help: "What the eBPF programs did at sockets, and why they left some to packets.", Grows: true,
			Labels: []dataplane.Label{{Name: "event", Value: words[stat]}}, Value: float64(sum),
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
	for _, why := range slices.Sorted(maps.Keys(t.left)) {
		out = append(out, dataplane.Count{
			Name: "switchyard_sockets_left_service_ports", Help: "Service ports that sockets leave to the packet backend, in part or wholly, by reason.",
			Labels: []dataplane.Label{{Name: "reason", Value: why}}, Value: float64(t.left[why]),
		})
	}
	return out, nil
}

// Counts returns those of the sockets' layer and of the packet backend.
func (a *accelerated) Counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	var errs []error
	if a.sockets != nil {
		counts, err := a.sockets.counts()
		aside := 0.0
		if a.trouble.Load() != nil {
			aside = 1
		}
		counts = append(counts, dataplane.Count{
			Name: "switchyard_sockets_aside", Help: "1 while all sockets are left to the packet backend, because their maps or hooks could not be written.", Value: aside,
		})
		out, errs = append(out, counts...), append(errs, err)
	}
	if b, ok := a.Backend.(dataplane.Counter); ok {
		counts, err := b.Counts()
		out, errs = append(out, counts...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

package ebpf

import (
	"fmt"

	"github.com/switchyard-io/switchyard/dataplane"
)

// stat is a counter of bpf/stats.h in words.
type stat struct{ metric, help, label, value string }

// stats are those of bpf/stats.h, in its order.
func stats() []stat {
	const (
		rejected = "switchyard_rejected_total"
		dropped  = "switchyard_dropped_total"
		events   = "switchyard_ebpf_events_total"
	)
	help := map[string]string{
		rejected: "Packets and calls that were refused, by reason.",
		dropped:  "Packets that were dropped, by reason.",
		events:   "What the eBPF programs did, and what they met.",
	}
	var out []stat
	for _, s := range []struct{ metric, value string }{
		{events, "forwarded"},
		{rejected, "no_endpoint"},
		{dropped, "no_endpoint"},
		{dropped, "source_range"},
		{rejected, "undefined_port"},
		{dropped, "unallocated_address"},
		{dropped, "overtaken_by_updates"},
		{events, "affinity_full"},
		{events, "socket_connect"},
		{events, "socket_send"},
		{events, "socket_left_to_packets"},
		{events, "socket_not_recorded"},
		{events, "packet_malformed"},
		{events, "packet_of_no_known_connection"},
		{dropped, "fragment_without_first"},
		{dropped, "fragment_of_sctp"},
		{dropped, "connection_table_full"},
		{dropped, "no_free_port"},
		{dropped, "no_node_address"},
		{dropped, "no_route"},
		{dropped, "write_failed"},
		{rejected, "in_silence"},
		{events, "packet_translated"},
		{events, "connection_masqueraded"},
		{events, "icmp_error_translated"},
		{dropped, "connection_not_added"},
	} {
		label := "reason"
		if s.metric == events {
			label = "event"
		}
		out = append(out, stat{s.metric, help[s.metric], label, s.value})
	}
	return out
}

// Counts are what the programs count, and how full the maps are.
func (b *backend) Counts() ([]dataplane.Count, error) {
	var out []dataplane.Count
	for i, s := range stats() {
		var perCPU []uint64
		if err := b.all[sockMapStats].Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("reading the counters of the eBPF programs: %w", err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out = append(out, dataplane.Count{Name: s.metric, Help: s.help, Grows: true, Labels: []dataplane.Label{{Name: s.label, Value: s.value}}, Value: float64(sum)})
	}
	used := usage{}
	if u := b.told.Load(); u != nil {
		used = *u
	}
	for _, m := range []struct {
		name      string
		have, max int
	}{
		{"frontends", used.frontends, b.opts.MaxFrontends},
		{"services", used.services, b.opts.MaxFrontends},
		{"endpoints", used.slots, b.opts.MaxEndpoints},
		{"source_ranges", used.sources, b.opts.MaxSourceRanges},
		// Entries as they were counted when old ones were last removed.
		{"connections", int(b.connections.Load()), connEntries * b.opts.MaxConnections},
	} {
		labels := []dataplane.Label{{Name: "map", Value: m.name}}
		out = append(out,
			dataplane.Count{Name: "switchyard_map_entries", Help: "Entries of an eBPF map in use.", Labels: labels, Value: float64(m.have)},
			dataplane.Count{Name: "switchyard_map_capacity", Help: "Entries that an eBPF map can hold.", Labels: labels, Value: float64(m.max)})
	}
	return out, nil
}

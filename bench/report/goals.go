package report

import (
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// The verdicts.
const (
	reached = "reached"
	missed  = "missed"
	unknown = "unknown"
)

// figure is one of the design's figures to reach, with what this run has measured of it.
type figure struct {
	What, Asked string
	Goals       []goal
}

// goal is one measured part of a figure.
type goal struct {
	Name     string // what tells it from the others of its figure
	Measured string
	Verdict  string
}

// noise is how much two equal columns may differ, and by how much a path may seem
// slower than another that it must not be slower than.
const noise = 0.01

// figures judges a run by the design's figures. A figure that the run has not
// measured is unknown.
func figures(r *result.Report) []figure {
	all := []figure{
		{"noise floor: how much two equal columns differ (A/A)", "less than 1 %", floors(r)},
		{"eBPF, ClusterIP, against straight to the pod", "at most 2 % more", nearStraight(r, proxy.Straight)},
		{"eBPF, ClusterIP, against straight to the pod on a node that tracks connections", "at most 2 % more", nearStraight(r, proxy.Conntrack)},
		{"NodePort to an endpoint on another node, against one nftables rule", "at most 2 % more", nodePort(r, proxy.OneRule, tolerance)},
		{"NodePort to an endpoint on another node, against kube-proxy nftables", "not slower: at most 1 % more", nodePort(r, "kube-proxy-nftables", noise)},
		{"packets for none of the Services", "no program in their way; XDP at most 20 ns", nil},
		{"XDP, known flow, endpoint on another node", "at most 60 ns of program", nil},
		{"first packet, 30,000 Services against 10", "at most 10 % more", flat(r)},
	}
	for _, l := range limits() {
		all = append(all, figure{l.what, l.asked, l.judge(r)})
	}
	return all
}

// Verdict is missed if any part is, reached if all that are measured are, and
// otherwise unknown.
func (f figure) Verdict() string {
	seen := map[string]bool{}
	for _, g := range f.Goals {
		seen[g.Verdict] = seen[g.Verdict] || g.Measured != notMeasured
	}
	switch {
	case seen[missed]:
		return missed
	case seen[unknown] || !seen[reached]:
		return unknown
	}
	return reached
}

// notMeasured stands where a figure would.
const notMeasured = "not measured"

// of returns the names of the goals with a verdict, or how many they are.
func (f figure) of(verdict string) string {
	const listed = 3
	var names []string
	absent := 0
	for _, g := range f.Goals {
		if g.Verdict != verdict {
			continue
		}
		name := g.Name
		if g.Measured == notMeasured {
			name += " (" + notMeasured + ")"
			absent++
		}
		names = append(names, name)
	}
	switch {
	case verdict == unknown && absent == len(f.Goals):
		return notMeasured
	case len(names) > listed:
		return fmt.Sprintf("%d of %d", len(names), len(f.Goals))
	}
	return strings.Join(names, "; ")
}

// Reached, Missed and Unknown say which of a figure's goals have that verdict.
func (f figure) Reached() string { return f.of(reached) }
func (f figure) Missed() string  { return f.of(missed) }
func (f figure) Unknown() string { return f.of(unknown) }

// judge compares an interval with the most that it may be.
func judge(i result.Interval, most float64) string {
	switch {
	case i.High <= most:
		return reached
	case i.Low > most:
		return missed
	}
	return unknown
}

// floors tells how much two equal columns may seem to differ. The whole interval
// counts: where it is wide, the run cannot see small differences.
func floors(r *result.Report) []goal {
	var all []goal
	for _, what := range []string{result.PodToClusterIP, result.OutsideToNodePort} {
		for _, m := range kinds() {
			row := result.Key{Part: result.Traffic, Case: what, Metric: string(m)}
			if i, ok := r.Floor(row); ok {
				verdict := missed
				if max(i.High, -i.Low) < noise {
					verdict = reached
				}
				all = append(all, goal{where(what) + ": " + row.Metric, share(i), verdict})
			}
		}
	}
	return all
}

// kinds are the metrics that the figures are about.
func kinds() []load.Kind {
	return []load.Kind{load.Requests, load.Connections, load.UDPRequests, load.UDPBatches, load.UDPFlows, load.Throughput}
}

// where is a short name of a path.
func where(what string) string {
	return map[string]string{result.PodToClusterIP: "ClusterIP", result.OutsideToNodePort: "NodePort"}[what]
}

// against returns the difference of two columns, as a share of the second, so that
// more is worse.
func against(r *result.Report, row result.Key, p, other string) (result.Interval, bool) {
	a, b := r.Of(row, p), r.Of(row, other)
	if a == nil || b == nil || a.Over || b.Over || min(len(a.Samples), len(b.Samples)) < result.Fewest {
		return result.Interval{}, false
	}
	i := a.Against(b)
	if a.More {
		i = i.Scale(-1)
	}
	return i, true
}

// tolerance is how much slower than its reference a path may be.
const tolerance = 0.02

// nearStraight judges what socket translation costs.
func nearStraight(r *result.Report, to string) []goal {
	var all []goal
	for _, m := range kinds() {
		row := result.Key{Part: result.Traffic, Case: result.PodToClusterIP, Metric: string(m)}
		if i, ok := against(r, row, "switchyard-ebpf", to); ok {
			all = append(all, goal{row.Metric, share(i), judge(i, tolerance)})
		}
	}
	return all
}

// nodePort judges the base, and eBPF on top of it, by another column.
func nodePort(r *result.Report, to string, most float64) []goal {
	var all []goal
	for _, p := range []string{"switchyard-ebpf", "switchyard-nftables"} {
		for _, m := range kinds() {
			row := result.Key{Part: result.Traffic, Case: result.OutsideToNodePort, Metric: string(m)}
			if i, ok := against(r, row, p, to); ok {
				all = append(all, goal{short(p) + ": " + row.Metric, share(i), judge(i, most)})
			}
		}
	}
	return all
}

// short is the name of one of Switchyard's backends.
func short(p string) string { return strings.TrimPrefix(spoken(p), "Switchyard ") }

// flat judges whether a first packet costs the same with many Services.
func flat(r *result.Report) []goal {
	const most, many = 0.1, 30_000
	var all []goal
	row := result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean, Services: many}
	for _, p := range own(r) {
		less := row
		less.Services = result.Few
		a, b := r.Of(row, p), r.Of(less, p)
		switch {
		case a != nil && a.Over:
			all = append(all, goal{short(p), unfinished(a), missed})
		case a != nil && b != nil && !b.Over:
			i := a.Against(b)
			all = append(all, goal{short(p), share(i), judge(i, most)})
		}
	}
	return all
}

// limit is a figure of the control plane, by backend.
type limit struct {
	row         result.Key
	what, asked string
	most        []most
}

// most is what a backend may take.
type most struct {
	backend string
	figure  float64
}

// limits are the design's figures of a proxy's own work.
func limits() []limit {
	work := func(what, metric string, services int) result.Key {
		return result.Key{Part: result.ControlPlane, Case: what, Metric: metric, Services: services}
	}
	change := result.EndpointChanged(result.RowPause)
	const changed = "one endpoint changes among 10,000 Services, until the first packet, "
	each := func(figure float64) []most {
		return []most{{"ebpf", figure}, {"nftables", figure}, {"iptables", figure}, {"ipvs", figure}}
	}
	return []limit{
		{work(result.ColdSync, result.Time, 10_000), "cold start, 10,000 Services × 10 endpoints, programming the kernel", "eBPF and nftables at most 2 s, iptables 4 s, IPVS 5 s", []most{{"ebpf", 2}, {"nftables", 2}, {"iptables", 4}, {"ipvs", 5}}},
		{work(change, "p50", 10_000), changed + "p50", "at most 6 ms", []most{{"ebpf", 6}, {"nftables", 6}, {"ipvs", 6}}},
		{work(change, "p99", 10_000), changed + "p99", "eBPF at most 10 ms, nftables and IPVS 20 ms, iptables 100 ms", []most{{"ebpf", 10}, {"nftables", 20}, {"iptables", 100}, {"ipvs", 20}}},
		{work(result.Memory, result.Resident, 10_000), "resident memory, 10,000 Services × 10 endpoints", "at most 70 MB", each(70)},
		{work(result.Memory, result.Resident, 50_000), "resident memory, 50,000 Services × 10 endpoints", "at most 200 MB", each(200)},
	}
}

// judge judges each backend.
func (l limit) judge(r *result.Report) []goal {
	var all []goal
	for _, m := range l.most {
		g := goal{short(ours + m.backend), notMeasured, unknown}
		if s := r.Of(l.row, ours+m.backend); s != nil {
			g.Measured, g.Verdict = strings.TrimSpace(absolute(s)+" "+s.Unit), judge(s.Interval(), m.figure)
			if s.Over {
				g.Measured, g.Verdict = unfinished(s), missed
			}
		}
		all = append(all, g)
	}
	return all
}

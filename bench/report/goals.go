package report

import (
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// goal is a figure to reach.
type goal struct {
	what, figure, measured string
	verdict                string
}

// The verdicts.
const (
	reached = "reached"
	missed  = "missed"
	unknown = "too noisy to tell"
)

// percent makes a share readable.
const percent = 100

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

// within is a goal about a difference: a share that must not be exceeded.
func within(what, figure string, i result.Interval, most float64) goal {
	return goal{what, figure, fmt.Sprintf("%+.1f %% [%+.1f %+.1f]", percent*i.Median, percent*i.Low, percent*i.High), judge(i, most)}
}

// goals are Switchyard's figures that this run can judge.
func goals(r *result.Report) []goal {
	all := floors(r)
	all = append(all, nearStraight(r)...)
	for _, p := range own(r) {
		all = append(all, nodePort(r, p)...)
	}
	for _, p := range own(r) {
		all = append(all, flat(r, p)...)
	}
	for _, p := range own(r) {
		all = append(all, controlPlane(r, p)...)
	}
	return all
}

// own are Switchyard's backends in a report, each once.
func own(r *result.Report) []string {
	var all []string
	for _, p := range r.Proxies {
		if strings.HasPrefix(p, "switchyard-") && !strings.HasSuffix(p, result.Again) {
			all = append(all, p)
		}
	}
	return all
}

// floors tell how much two equal columns differ.
func floors(r *result.Report) []goal {
	const most = 0.01
	var all []goal
	for _, what := range []string{result.PodToClusterIP, result.OutsideToNodePort} {
		for _, m := range []load.Kind{load.Requests, load.Connections, load.UDPRequests, load.UDPBatches, load.UDPFlows} {
			row := result.Key{Part: result.Traffic, Case: what, Metric: string(m)}
			if floor, ok := r.Floor(row); ok {
				g := within("two equal columns, "+what+": "+row.Metric, "within 1 %", floor, most)
				if floor.Low < -most {
					g.verdict = missed
				}
				all = append(all, g)
			}
		}
	}
	return all
}

// against is the difference of two columns, as a share of the second, so that
// more is worse.
func against(r *result.Report, row result.Key, p, other string) (result.Interval, bool) {
	a, b := r.Of(row, p), r.Of(row, other)
	if a == nil || b == nil || a.Over || b.Over {
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

// nearStraight is what socket translation costs.
func nearStraight(r *result.Report) []goal {
	var all []goal
	for _, to := range []string{proxy.Straight, proxy.Conntrack} {
		for _, m := range []load.Kind{load.Requests, load.Connections, load.UDPRequests, load.UDPBatches, load.UDPFlows, load.Throughput} {
			row := result.Key{Part: result.Traffic, Case: result.PodToClusterIP, Metric: string(m)}
			if i, ok := against(r, row, "switchyard-ebpf", to); ok {
				all = append(all, within("switchyard-ebpf, ClusterIP: "+row.Metric+", against "+to, "within 2 %", i, tolerance))
			}
		}
	}
	return all
}

// nodePort compares with one rule, and with kube-proxy.
func nodePort(r *result.Report, p string) []goal {
	if p != "switchyard-ebpf" && p != "switchyard-nftables" {
		return nil
	}
	var all []goal
	for _, m := range []load.Kind{load.Requests, load.Connections, load.UDPRequests, load.UDPBatches, load.UDPFlows, load.Throughput} {
		row := result.Key{Part: result.Traffic, Case: result.OutsideToNodePort, Metric: string(m)}
		if i, ok := against(r, row, p, proxy.OneRule); ok {
			all = append(all, within(p+", NodePort: "+row.Metric+", against one rule", "within 2 %", i, tolerance))
		}
		if i, ok := against(r, row, p, "kube-proxy-nftables"); ok {
			g := within(p+", NodePort: "+row.Metric+", against kube-proxy-nftables", "not slower", i, 0)
			if !r.Seen(row, i) {
				g.verdict = reached // no difference seen
			}
			all = append(all, g)
		}
	}
	return all
}

// flat is whether a first packet costs the same with many Services.
func flat(r *result.Report, p string) []goal {
	const most = 0.1
	var all []goal
	row := result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean, Services: result.Few}
	few := r.Of(row, p)
	for _, size := range []int{10_000, 30_000} {
		row.Services = size
		if many := r.Of(row, p); few != nil && many != nil && !many.Over {
			all = append(all, within(fmt.Sprintf("%s, first packet, %s Services against %d", p, result.Thousands(size), result.Few), "within 10 %", many.Against(few), most))
		}
	}
	return all
}

// limit is a figure of the control plane, by backend.
type limit struct {
	row  result.Key
	what string
	most map[string]float64
}

// limits are DESIGN's figures of a proxy's own work.
func limits() []limit {
	work := func(what, metric string, services int) result.Key {
		return result.Key{Part: result.ControlPlane, Case: what, Metric: metric, Services: services}
	}
	const change = "one endpoint changes, 10,000 Services, from the request to the API server to the first packet, "
	return []limit{
		{work(result.ColdSync, result.Time, 10_000), "cold start, 10,000 Services × 10 endpoints, to the kernel", map[string]float64{"ebpf": 2, "nftables": 2, "ipvs": 5, "iptables": 4}},
		{work(result.ColdSync, result.Time, 50_000), "cold start, 50,000 Services × 10 endpoints, to the kernel", map[string]float64{"ebpf": 12, "nftables": 12}},
		{work(result.EndpointChanged(result.RowPause), "p50", 10_000), change + "p50", map[string]float64{"ebpf": 6, "nftables": 6}},
		{work(result.EndpointChanged(result.RowPause), "p99", 10_000), change + "p99", map[string]float64{"ebpf": 20, "nftables": 20, "ipvs": 20, "iptables": 100}},
		{work(result.Memory, result.Resident, 10_000), "memory at 10,000 Services × 10 endpoints", map[string]float64{"ebpf": 70, "nftables": 70, "ipvs": 70, "iptables": 70}},
		{work(result.Memory, result.Resident, 50_000), "memory at 50,000 Services × 10 endpoints", map[string]float64{"ebpf": 200, "nftables": 200, "ipvs": 200, "iptables": 200}},
	}
}

// controlPlane judges a proxy's own work.
func controlPlane(r *result.Report, p string) []goal {
	var all []goal
	for _, l := range limits() {
		s := r.Of(l.row, p)
		most, ok := l.most[strings.TrimPrefix(p, "switchyard-")]
		if s == nil || !ok {
			continue
		}
		i := s.Interval()
		g := goal{p + ", " + l.what, fmt.Sprintf("at most %g %s", most, s.Unit), cell(s), judge(i, most)}
		if s.Over {
			g.verdict = missed
		}
		all = append(all, g)
	}
	return all
}

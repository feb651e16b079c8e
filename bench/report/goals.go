package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/bench/result"
)

// goal is a figure to reach.
type goal struct {
	what, figure, measured string
	reached                bool
	noise                  bool // the rounds differ by more than the figure is about
}

// goals are Switchyard's figures that this run can judge.
func goals(r *result.Report) []goal {
	var all []goal
	add := func(g goal, ok bool) {
		if ok {
			all = append(all, g)
		}
	}
	for _, metric := range []string{result.Requests, result.Throughput + "1", result.Throughput + "8"} {
		add(nearStraight(r, result.PodToClusterIP, metric))
	}
	for _, p := range own(r) {
		add(flat(r, p, 10_000))
		add(flat(r, p, 30_000))
		add(notBelow(r, p, "kube-proxy-nftables"))
		add(below(r, p, result.Key{Part: result.ControlPlane, Case: result.ColdSync, Metric: result.Time, Services: 10_000},
			"cold start, 10,000 Services × 10 endpoints, to the kernel", "s", map[string]float64{"ebpf": 2, "nftables": 2, "ipvs": 5, "iptables": 15}))
		add(below(r, p, result.Key{Part: result.ControlPlane, Case: result.ColdSync, Metric: result.Time, Services: 50_000},
			"cold start, 50,000 Services × 10 endpoints, to the kernel", "s", map[string]float64{"ebpf": 12, "nftables": 12}))
		add(below(r, p, result.Key{Part: result.ControlPlane, Case: result.EndpointChanged(result.RowPause), Metric: "p50", Services: 10_000},
			"one endpoint changes, 10,000 Services, from the request to the API server to the first packet, p50", "ms", map[string]float64{"ebpf": 6, "nftables": 6}))
		add(below(r, p, result.Key{Part: result.ControlPlane, Case: result.EndpointChanged(result.RowPause), Metric: "p99", Services: 10_000},
			"one endpoint changes, 10,000 Services, from the request to the API server to the first packet, p99", "ms", map[string]float64{"ebpf": 20, "nftables": 20, "ipvs": 10, "iptables": 200}))
		add(below(r, p, result.Key{Part: result.ControlPlane, Case: result.Memory, Metric: result.Resident, Services: 10_000},
			"memory at 10,000 Services × 10 endpoints", "MB", map[string]float64{"ebpf": 80, "nftables": 80, "ipvs": 140, "iptables": 140}))
	}
	return all
}

// own are Switchyard's backends in a report.
func own(r *result.Report) []string {
	var all []string
	for _, p := range r.Proxies {
		if strings.HasPrefix(p, "switchyard-") {
			all = append(all, p)
		}
	}
	return all
}

func nearStraight(r *result.Report, what, metric string) (goal, bool) {
	const share = 0.98
	row := result.Key{Part: result.Traffic, Case: what, Metric: metric}
	a, b := r.Of(row, "switchyard-ebpf"), r.Of(row, "straight")
	if a == nil || b == nil {
		return goal{}, false
	}
	ratio, spread := a.Ratio(b)
	return goal{"switchyard-ebpf, ClusterIP: " + metric + ", against straight to the pod", "within 2 %",
		fmt.Sprintf("%+.1f %% ±%.1f", 100*(ratio-1), 100*spread), ratio >= share, spread > 1-share}, true
}

// flat is whether a first packet costs the same with many Services.
func flat(r *result.Report, p string, services int) (goal, bool) {
	const share = 1.1
	row := result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: "p50", Services: 10}
	few := r.Of(row, p)
	row.Services = services
	many := r.Of(row, p)
	if few == nil || many == nil {
		return goal{}, false
	}
	ratio := many.Median() / few.Median()
	spread := few.Spread() + many.Spread()
	return goal{p + ", first packet, " + result.Thousands(services) + " Services against 10, p50", "within 10 %",
		fmt.Sprintf("%+.1f %% ±%.1f", 100*(ratio-1), 100*spread), ratio <= share, spread > share-1}, true
}

// notBelow is whether a proxy answers as many requests to a NodePort as another one.
func notBelow(r *result.Report, p, than string) (goal, bool) {
	row := result.Key{Part: result.Traffic, Case: result.OutsideToNodePort, Metric: result.Requests}
	a, b := r.Of(row, p), r.Of(row, than)
	if a == nil || b == nil || !slices.Contains([]string{"switchyard-ebpf", "switchyard-nftables"}, p) {
		return goal{}, false
	}
	ratio, spread := a.Ratio(b)
	return goal{p + ", NodePort, endpoint on another node: " + result.Requests + ", against " + than, "not below",
		fmt.Sprintf("%+.1f %% ±%.1f", 100*(ratio-1), 100*spread), ratio >= 1, ratio < 1 && spread > 1-ratio}, true
}

func below(r *result.Report, p string, row result.Key, what, unit string, limits map[string]float64) (goal, bool) {
	s := r.Of(row, p)
	limit, ok := limits[strings.TrimPrefix(p, "switchyard-")]
	if s == nil || !ok {
		return goal{}, false
	}
	return goal{p + ", " + what, fmt.Sprintf("under %g %s", limit, unit), value(s.Median()) + " " + unit, !s.Over && s.Median() < limit, false}, true
}

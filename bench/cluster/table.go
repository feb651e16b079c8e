package cluster

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"github.com/switchyard-io/switchyard/bench/result"
)

const (
	mega = 1e6
	// card is what a network card of 10 Gbit/s sends in a second.
	card = 10e9 / 8
)

// Table prints what was measured, the Models, and what they say of large clusters.
func Table(w io.Writer, r *Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\t\n", args...) } // Flush has the error
	section := func(title, columns string) {
		_ = t.Flush() // the last one has the error too
		_, _ = fmt.Fprintf(w, "\n%s\n", title)
		line("%s", columns)
	}
	section(fmt.Sprintf("While endpoints change: one API server, %s Services × %d endpoints", result.Thousands(r.Services), r.Endpoints),
		"proxies\tchanges/s\tCPU, cores\tsent, MB/s\treceived, MB/s\tlag p50, ms\tp99\tmost\tmissing\tproxies' CPU, cores")
	for _, p := range r.Windows {
		lag := "\t\t\t"
		if p.Lag != nil {
			lag = fmt.Sprintf("%.1f\t%.1f\t%.1f\t%d", p.Lag.P50, p.Lag.P99, p.Lag.Most, p.Lag.Missing)
		}
		line("%s\t%.1f\t%.3f\t%.3f\t%.3f\t%s\t%.2f", name(p.Kind, p.Agents), p.Changes, p.CPU, p.Sent/mega, p.Received/mega, lag, p.ProxiesCPU)
	}
	section("When all ask for everything at once", "proxies\tby\tAPI server down, s\tall synced, s\tCPU, s\tsent, MB\treceived, MB\tpeak memory, MB\tproxies' memory, MB")
	for _, s := range r.Storms {
		line("%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f", name(s.Kind, s.Agents), s.What, known(s.Down), known(s.Synced), s.CPU, s.Sent/mega, s.Received/mega, s.Peak/mega, s.ProxiesPeak/mega)
	}
	section("Models: base + changes·a + proxies·b + proxies·changes·c", "proxies\tcost\tunit\tbase\ta\tb\tc\tresidual\tR²\tpoints")
	for i := range r.Models {
		for _, m := range r.Models[i].all() {
			line("%s\t%s\t%s\t%.4g\t%.4g\t%.4g\t%.4g\t%.3g\t%.4f\t%d", r.Models[i].Kind, m.What, m.Unit, m.Base, m.PerChange, m.PerAgent, m.PerAgentAndChange, m.Residual, m.R2, m.Points)
		}
	}
	section("What they say of large clusters, ± of one more point with 95 % certainty if all stays linear",
		fmt.Sprintf("proxies\tnodes\tchanges/s\tCPU, cores\t±\tsent, MB/s\t±\tof a 10 Gbit/s card\tnodes until %g cores are busy\tuntil the card is full", r.Cores))
	for _, m := range r.Models {
		predict(line, m, r.Cores)
	}
	section("and of all asking at once", "proxies\tby\tnodes\tCPU, s\t±\tsent, GB\t±\ts on a 10 Gbit/s card\tpeak memory, GB")
	for _, m := range r.Models {
		predictStorm(line, m.Kind, Start, m.StartCPU, m.StartSent, nil)
		predictStorm(line, m.Kind, Restart, m.RestartCPU, m.RestartSent, m.RestartPeak)
	}
	return t.Flush()
}

// sizes are the clusters that are predicted.
func sizes() []float64 { return []float64{5000, 15_000} }

// predict prints what a kind of proxies costs in large clusters.
func predict(line func(string, ...any), m Models, cores float64) {
	if m.CPU == nil || m.Sent == nil {
		return
	}
	for _, nodes := range sizes() {
		for _, changes := range []float64{1, 10, 100} {
			l := Load{nodes, changes}
			sent := m.Sent.At(l)
			line("%s\t%.0f\t%g\t%.2f\t%.2f\t%.1f\t%.1f\t%.0f %%\t%s\t%s", m.Kind, nodes, changes, m.CPU.At(l), m.CPU.Margin(l),
				sent/mega, m.Sent.Margin(l)/mega, 100*sent/card, nodesText(m.CPU.Most(cores, changes)), nodesText(m.Sent.Most(card, changes)))
		}
	}
}

// predictStorm prints what it costs that all proxies of large clusters ask at once.
// A peak that is nil is not known.
func predictStorm(line func(string, ...any), kind, by string, cpu, sent, peak *Model) {
	if cpu == nil || sent == nil {
		return
	}
	const giga = 1e9
	for _, nodes := range sizes() {
		l := Load{Agents: nodes}
		memory := ""
		if peak != nil {
			memory = fmt.Sprintf("%.1f ± %.1f", peak.At(l)/giga, peak.Margin(l)/giga)
		}
		line("%s\t%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%s", kind, by, nodes, cpu.At(l), cpu.Margin(l),
			sent.At(l)/giga, sent.Margin(l)/giga, sent.At(l)/card, memory)
	}
}

func nodesText(n float64) string {
	if math.IsInf(n, 1) {
		return "–"
	}
	return result.Thousands(int(n))
}

// known is a time, where zero means that it is not known.
func known(s float64) string {
	if s == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", s)
}

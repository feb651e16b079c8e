package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// sample is a small report with something of everything.
func sample() *result.Report {
	again := "switchyard-ebpf" + result.Again
	r := &result.Report{
		Proxies: []string{proxy.Straight, "switchyard-ebpf", again, "kube-proxy-nftables"},
		Without: []string{"switchyard-ipvs: this kernel has no ip_vs"},
	}
	add := func(k result.Key, unit string, samples ...float64) {
		for _, s := range samples {
			r.Add(result.Series{Key: k, Unit: unit}, s)
		}
	}
	for _, p := range r.Proxies {
		f := map[string]float64{proxy.Straight: 0, "switchyard-ebpf": 5, again: 5.1, "kube-proxy-nftables": 5}[p]
		row := result.Key{Part: result.Traffic, Case: result.PodToClusterIP, Metric: string(load.Requests), Proxy: p}
		add(row, "µs", 100+f, 101+f, 99+f, 100+f, 100+f, 101+f, 99+f)
		for _, size := range []int{10, 10_000} {
			add(result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean, Proxy: p, Services: size}, "µs", 40+f, 41+f, 40+f, 40+f, 40+f, 41+f)
		}
		r.Curves = append(r.Curves, &result.Curve{
			Key:    row,
			Points: []result.Point{{Quantile: 0, Microseconds: 10}, {Quantile: 0.9, Microseconds: 20 + f}, {Quantile: 0.999, Microseconds: 90}},
		})
	}
	cold := result.Key{Part: result.ControlPlane, Case: result.ColdSync, Metric: result.Time, Proxy: "switchyard-ebpf", Services: 10_000}
	add(cold, "s", 0.5)
	cold.Proxy = "kube-proxy-nftables"
	r.Add(result.Series{Key: cold, Unit: "s", Over: true}, 90)
	return r
}

func TestTableAndMarkdown(t *testing.T) {
	var table, page strings.Builder
	if err := Table(&table, sample()); err != nil {
		t.Fatal(err)
	}
	if err := Markdown(&page, sample(), []Plot{{"First packet", "first-packet"}}, "pictures"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"100 [99 101]", "105, +5.0% [+5.0 +5.0]", "over 90", "10,000 Services", "switchyard-ipvs: this kernel has no ip_vs", "missed", "reached", "at most 2 s", "within 2 %"} {
		for name, text := range map[string]string{"the table": table.String(), "the page": page.String()} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q:\n%s", name, want, text)
			}
		}
	}
	if !strings.Contains(page.String(), "![first packet](pictures/first-packet.svg)") {
		t.Error("the page lacks its picture")
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	plots, err := Plots(sample(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range plots {
		names = append(names, p.File)
		for _, ending := range []string{".png", ".svg"} {
			if info, err := os.Stat(filepath.Join(dir, p.File+ending)); err != nil || info.Size() == 0 {
				t.Errorf("%s%s: %v", p.File, ending, err)
			}
		}
	}
	if got := strings.Join(names, " "); got != "latency-clusterip first-packet" {
		t.Errorf("plots %s; there is data for latency-clusterip and first-packet", got)
	}
}

func TestChanges(t *testing.T) {
	older, newer := sample(), sample()
	for _, s := range newer.Series {
		for i := range s.Samples {
			s.Samples[i] *= 2
			if s.Proxy == "kube-proxy-nftables" && s.Part == result.Traffic {
				s.Samples[i] *= 2
			}
		}
	}
	var out strings.Builder
	if err := Changes(&out, older, newer); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"worse, beside straight", "+100.0%", "no difference seen", "(1 samples are too few to tell)", "did not end in its time"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestValue(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.123: "0.12", 12.34: "12.3", 123.4: "123", 1234.4: "1,234", 1234567: "1,234,567", 7: "7"} {
		if got := value(v); got != want {
			t.Errorf("%v is written %s; want %s", v, got, want)
		}
	}
}

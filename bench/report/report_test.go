package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/bench/result"
)

// sample is a small report with something of everything.
func sample() *result.Report {
	r := &result.Report{
		Rounds: 5, Proxies: []string{"straight", "switchyard-ebpf", "kube-proxy-nftables"},
		Without: []string{"switchyard-ipvs: this kernel has no ip_vs"},
	}
	add := func(part, what, metric, unit, proxy string, services int, samples ...float64) {
		for _, s := range samples {
			r.Add(result.Series{Key: result.Key{Part: part, Case: what, Metric: metric, Proxy: proxy, Services: services}, Unit: unit, More: unit == "/s"}, s)
		}
	}
	const clusterIP = "pod to ClusterIP, endpoint on another node"
	for i, p := range r.Proxies {
		f := float64(i)
		add("traffic", clusterIP, "TCP requests, one connection", "/s", p, 0, 20000-1000*f, 20100-1000*f, 20200-1000*f)
		for _, size := range []int{10, 10_000} {
			add("first packet", "time to connect, pod to ClusterIP", "p50", "µs", p, size, 40+f, 41+f)
		}
		r.Curves = append(r.Curves, &result.Curve{
			Key:    result.Key{Part: "traffic", Case: clusterIP, Proxy: p},
			Points: []result.Point{{Quantile: 0, Microseconds: 10}, {Quantile: 0.9, Microseconds: 20 + f}, {Quantile: 0.999, Microseconds: 90}},
		})
	}
	const cold = "cold start, of that programming the kernel"
	add("control plane", cold, "time", "s", "switchyard-ebpf", 10_000, 0.5)
	r.Add(result.Series{Key: result.Key{Part: "control plane", Case: cold, Metric: "time", Proxy: "kube-proxy-nftables", Services: 10_000}, Unit: "s", Over: true}, 90)
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
	for _, want := range []string{"20,100 ±0%", "19,100 ±0%", "40.5 ±1%", "over 90", "10,000 Services", "switchyard-ipvs: this kernel has no ip_vs", "-5.0 % ±0.0", "missed", "reached", "under 2 s"} {
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
		}
	}
	for _, r := range []*result.Report{older, newer} {
		for _, s := range r.Series {
			if s.Part == "traffic" {
				s.Samples = append(s.Samples, s.Samples[0]+1, s.Samples[0]+2)
			}
		}
	}
	var out strings.Builder
	if err := Changes(&out, older, newer); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"% better (p=0.008 n=5)", "? (2 samples are too few to tell)", "did not end in its time"} {
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

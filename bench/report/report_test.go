package report

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

const (
	ebpf     = "switchyard-ebpf"
	nftables = "switchyard-nftables"
	theirNft = "kube-proxy-nftables"
	theirIPT = "kube-proxy-iptables"
)

// sample is a small report with something of everything.
func sample() *result.Report {
	again := ebpf + result.Again
	r := &result.Report{
		Proxies: []string{proxy.Straight, proxy.Conntrack, proxy.OneRule, ebpf, again, nftables, theirIPT, theirNft},
		Without: []string{"switchyard-ipvs: this kernel has no ip_vs"},
		Notes:   []string{"First packet: kube-proxy-iptables was <too> slow."},
	}
	extra := map[string]float64{again: 0.1, ebpf: 0, nftables: 5, theirIPT: 9, theirNft: 5, proxy.OneRule: 5, proxy.Conntrack: 0, proxy.Straight: -5}
	for _, p := range r.Proxies {
		f := extra[p]
		for _, what := range []string{result.PodToClusterIP, result.OutsideToNodePort} {
			row := result.Key{Part: result.Traffic, Case: what, Metric: string(load.Requests), Proxy: p}
			add(r, row, "µs", 105+f, 106+f, 104+f, 105+f, 105+f, 106+f, 104+f)
			row.Metric = result.CPU + row.Metric
			add(r, row, "µs", 105+f, 106+f, 104+f, 105+f, 105+f, 106+f, 104+f)
		}
		r.Curves = append(r.Curves, &result.Curve{
			Key:    result.Key{Part: result.Traffic, Case: result.PodToClusterIP, Metric: string(load.Requests), Proxy: p},
			Points: []result.Point{{Quantile: 0, Microseconds: 10}, {Quantile: 0.9, Microseconds: 20 + f}, {Quantile: 0.999, Microseconds: 90}}, Count: 100_000,
		})
		for _, size := range []int{result.Few, 30_000} {
			add(r, result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean, Proxy: p, Services: size}, "µs", 40+f, 41+f, 40+f, 40+f, 40+f, 41+f)
		}
	}
	for _, size := range []int{1000, 10_000} {
		addWork(r, size)
	}
	return r
}

// addWork adds the proxies' own work, which kube-proxy's iptables mode does not
// finish with many Services.
func addWork(r *result.Report, size int) {
	for p, times := range map[string]float64{ebpf: 1, nftables: 2, theirNft: 100, theirIPT: 200} {
		key := func(what, metric string) result.Key {
			return result.Key{Part: result.ControlPlane, Case: what, Metric: metric, Proxy: p, Services: size}
		}
		add(r, key(result.Memory, result.Resident), "MB", 50*times)
		if p == theirIPT && size == 10_000 {
			r.Add(result.Series{Key: key(result.ColdStart, result.Time), Unit: "s", Over: true}, 90)
			continue
		}
		add(r, key(result.ColdStart, result.Time), "s", 0.5*times)
		add(r, key(result.ColdSync, result.Time), "s", 0.2*times)
		add(r, key(result.EndpointChanged(result.RowPause), "p50"), "ms", 5*times)
		add(r, key(result.EndpointChanged(result.RowPause), "p99"), "ms", 9*times)
	}
}

func add(r *result.Report, k result.Key, unit string, samples ...float64) {
	for _, s := range samples {
		r.Add(result.Series{Key: k, Unit: unit}, s)
	}
}

// written writes a report to a directory and returns its page.
func written(t *testing.T, r *result.Report, dir string) (page, html string) {
	t.Helper()
	if err := Write(r, Files{Page: filepath.Join(dir, "report.md"), Pictures: filepath.Join(dir, "pictures"), Beside: dir}); err != nil {
		t.Fatal(err)
	}
	return read(t, dir, "report.md"), read(t, dir, "report.html")
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPage(t *testing.T) {
	dir := t.TempDir()
	page, html := written(t, sample(), dir)
	for name, want := range map[string]string{
		"the change":                "- One endpoint changes among 10,000 Services: the first packet takes the new way after 5 ms (p99 9 ms) with Switchyard eBPF; kube-proxy nftables: 500 ms (p99 900 ms).",
		"the request":               "- A TCP request from a pod through a ClusterIP takes 105 µs with Switchyard eBPF and 100 µs straight to the pod: +5.0 % [+5.0 +5.0].",
		"the start":                 "- A cold start with 10,000 Services of 10 endpoints: all answer after 0.50 s with Switchyard eBPF; kube-proxy nftables: 50 s.",
		"the memory":                "- Resident memory with 10,000 Services of 10 endpoints: 50 MB with Switchyard eBPF; kube-proxy nftables: 5,000 MB.",
		"the noise":                 "- Two equal columns differ by at most 0.1 %, with 95 % confidence in each of 2 rows.",
		"a figure reached":          "| one endpoint changes among 10,000 Services, until the first packet, p99 | eBPF at most 10 ms, nftables and IPVS 20 ms, iptables 100 ms | reached | eBPF; nftables |  | iptables (not measured); IPVS (not measured) |",
		"a figure missed":           "| eBPF, ClusterIP, against straight to the pod | at most 2 % more | missed |  | TCP requests, one connection |  |",
		"a figure not measured":     "| XDP, known flow, endpoint on another node | at most 60 ns of program | unknown |  |  | not measured |",
		"the reference alone":       "| TCP requests, one connection, µs | 100 [99 101] |",
		"the A/A column":            "| switchyard-ebpf | A/A | switchyard-nftables |",
		"a difference":              "| 110<br>+10.0 % [+10.0 +10.0] |",
		"no difference to one rule": "| 110 [109 111] | 105<br>-4.5 % [-4.5 -4.5] | +0.1 % [+0.1 +0.1] | 110<br>no difference seen |",
		"what did not finish":       "did not finish in 90 s",
		"what never was ready":      "not ready in 90 s",
		"figures to the right":      "|---|---:|---:|",
		"the first packet by size":  "| 30,000, µs | 35<br>no difference seen |",
		"the plot of changes":       "![one endpoint changes among 10,000 Services: time to the first answer](pictures/change.svg)",
		"what is not in it":         "| not measured | switchyard-ipvs: this kernel has no ip_vs |",
		"a note that is no HTML":    "kube-proxy-iptables was &lt;too&gt; slow.",
		"CPU in a table of its own": "\n\n|  | straight | straight-tracked | one-rule | switchyard-ebpf | A/A | switchyard-nftables | kube-proxy-iptables | kube-proxy-nftables |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n| CPU: TCP requests",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s: the page lacks %q:\n%s", name, want, page)
		}
	}
	if first := regexp.MustCompile(`!\[.*\]\((.*)\)`).FindStringSubmatch(page); first == nil || first[1] != "pictures/change.svg" {
		t.Errorf("the first plot is %q; want that of changes", first)
	}
	for name, want := range map[string]string{
		"a heading":      "<h2 id=\"the-figures-to-reach\">",
		"a right column": "style=\"text-align:right\"",
		"a difference":   "110<br>+10.0 % [+10.0 +10.0]",
		"a picture":      "aria-label=\"one endpoint changes among 10,000 Services: time to the first answer\"><svg",
		"its own style":  "prefers-color-scheme: dark",
		"folded parts":   "<details><summary>Traffic</summary>",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("%s: the HTML lacks %q", name, want)
		}
	}
	for _, foreign := range []string{"<script", "<img", "src=", "<link", "@import"} {
		if strings.Contains(html, foreign) {
			t.Errorf("the HTML has %q; it must need no other file", foreign)
		}
	}
	marks(t, filepath.Join(dir, "pictures"))
}

// marks sees intervals and what did not finish in the plots.
func marks(t *testing.T, dir string) {
	t.Helper()
	for file, want := range map[string]string{
		"change":       "not ready in 90 s",
		"cold-start":   "kube-proxy-iptables did not finish in 90 s",
		"request":      "noise: two equal columns",
		"first-packet": "with 95 % intervals",
	} {
		if svg := read(t, dir, file+".svg"); !strings.Contains(svg, want) {
			t.Errorf("%s.svg lacks %q", file, want)
		}
		if info, err := os.Stat(filepath.Join(dir, file+".png")); err != nil || info.Size() == 0 {
			t.Errorf("%s.png: %v", file, err)
		}
	}
}

// TestAnything sees that a report tells whatever a run measured.
func TestAnything(t *testing.T) {
	r := &result.Report{Proxies: []string{ebpf}}
	r.Add(result.Series{Key: result.Key{Part: "costs", Case: "rules", Metric: "a Service more", Proxy: ebpf}, Unit: "rules", Note: "Counted, not timed."}, 2)
	page, _ := written(t, r, t.TempDir())
	for _, want := range []string{"<details><summary>Costs</summary>", "### Rules", "Counted, not timed.", "| a Service more, rules | 2 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "## How soon") {
		t.Error("the page asks what the run has not measured")
	}
}

func TestExtras(t *testing.T) {
	for _, c := range []struct {
		name, notes     string
		sections        []string
		want, not, fail string
	}{
		{name: "none", want: "| missed |"},
		{name: "why a figure is missed", notes: "For whoever reads it.\n\n## eBPF, ClusterIP, against straight to the pod\n\nThe profile says so.\n",
			want: "<a id=\"note-1\"></a>\n**eBPF, ClusterIP, against straight to the pod**: The profile says so.", not: "For whoever"},
		{name: "its link", notes: "## eBPF, ClusterIP\n\nThe profile says so.\n", want: "missed ([why](#note-1))"},
		{name: "a figure that is reached has none", notes: "## one endpoint changes among 10,000 Services, until the first packet, p99\n\nOld.\n", not: "Old."},
		{name: "of no figure", notes: "## speed\n\nFast.\n", fail: `no figure begins with "speed"`},
		{name: "empty", notes: "## eBPF\n", fail: "is empty"},
		{name: "sections", sections: []string{"## What does it cost the cluster?\n\nLittle.\n"}, want: "\n## What does it cost the cluster?\n\nLittle.\n\n## All figures"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, notesFile), c.notes)
			for _, s := range c.sections {
				put(t, filepath.Join(dir, sectionsDir, "one.md"), s)
			}
			p, err := pageOf(sample(), Files{Page: filepath.Join(dir, "report.md"), Pictures: dir, Beside: dir})
			if c.fail != "" {
				if err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Fatalf("error %v; want %q", err, c.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := p.write(&b); err != nil {
				t.Fatal(err)
			}
			page := b.String()
			if !strings.Contains(page, c.want) || c.not != "" && strings.Contains(page, c.not) {
				t.Errorf("want %q, and not %q, in:\n%s", c.want, c.not, page)
			}
		})
	}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestREADME(t *testing.T) {
	dir := t.TempDir()
	readme := filepath.Join(dir, "README.md")
	f := Files{Page: filepath.Join(dir, "docs", "benchmarks.md"), Pictures: filepath.Join(dir, "docs", "p"), Beside: dir, README: readme}
	put(t, readme, "# It\n\n"+begin+"what was there\n"+end+"\nthe rest\n")
	for range 2 { // the second finds what the first wrote
		if err := writeREADME(sample(), f); err != nil {
			t.Fatal(err)
		}
		text := read(t, readme)
		for _, want := range []string{
			"# It\n\n" + begin + "|  | Switchyard eBPF | kube-proxy nftables |\n", "(docs/benchmarks.md)", "\n" + end + "\nthe rest\n",
			"| one endpoint changes among 10,000 Services: the first packet takes the new way | 5 ms (p99 9 ms) | 500 ms (p99 900 ms) |\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the README lacks %q:\n%s", want, text)
			}
		}
		if strings.Contains(text, "what was there") || strings.Count(text, "\n| ") != 6 {
			t.Errorf("the block is not just five rows:\n%s", text)
		}
	}
	put(t, readme, "# It\n")
	if err := writeREADME(sample(), f); err == nil || !strings.Contains(err.Error(), "has no block between") {
		t.Errorf("a README without a block: %v", err)
	}
}

func TestPictures(t *testing.T) {
	for _, c := range []struct {
		name string
		r    *result.Report
		want string
	}{
		{"everything", sample(), "change request first-packet cold-start memory latency-clusterip"},
		{"nothing", &result.Report{}, ""},
		{"one number of Services has no line", only(sample(), func(s *result.Series) bool { return s.Services == 10_000 }), "change"},
	} {
		p, err := newPage(c.r, extras{}, ".")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, picture := range p.pictures() {
			names = append(names, picture.File)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: plots %q; want %q", c.name, got, c.want)
		}
	}
}

// only keeps some series of a report.
func only(r *result.Report, want func(*result.Series) bool) *result.Report {
	r.Series = slices.DeleteFunc(r.Series, func(s *result.Series) bool { return !want(s) })
	return r
}

func TestColour(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{ebpf, ebpf, true},
		{ebpf, ebpf + result.Again, false},
		{ebpf + result.Again, ebpf + "+socket-lb=off", true}, // both are lighter
		{ebpf + "@/tmp/other", ebpf + "+x=1@/tmp/other", true},
		{proxy.Conntrack, proxy.Straight, false},
		{proxy.OneRule, "no such proxy", false},
		{nftables, theirNft, false},
	} {
		if got := colour(c.a) == colour(c.b); got != c.same {
			t.Errorf("%s and %s have the same colour: %v", c.a, c.b, got)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		i    result.Interval
		want string
	}{
		{result.Interval{Median: 0, Low: -0.01, High: 0.01}, reached},
		{result.Interval{Median: -0.05, Low: -0.06, High: -0.04}, reached},
		{result.Interval{Median: 0, Low: -0.01, High: 0.011}, unknown}, // no difference seen, and still not shown to be small
		{result.Interval{Median: 0.02, Low: 0.01, High: 0.03}, unknown},
		{result.Interval{Median: 0.02, Low: 0.011, High: 0.03}, missed},
	} {
		if got := judge(c.i, noise); got != c.want {
			t.Errorf("%v is %s; want %s", c.i, got, c.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	no := goal{"a", notMeasured, unknown}
	for _, c := range []struct {
		name          string
		goals         []goal
		want, unknown string
	}{
		{"nothing", nil, unknown, notMeasured},
		{"nothing measured", []goal{no, no}, unknown, notMeasured},
		{"all reached that are measured", []goal{no, {"b", "1", reached}}, reached, "a (not measured)"},
		{"one unknown", []goal{{"b", "1", reached}, {"c", "2", unknown}}, unknown, "c"},
		{"one missed", []goal{{"b", "1", unknown}, {"c", "2", missed}}, missed, "b"},
		{"many", []goal{{"b", "1", unknown}, {"c", "1", unknown}, {"d", "1", unknown}, {"e", "1", unknown}}, unknown, "4 of 4"},
	} {
		f := figure{Goals: c.goals}
		if f.Verdict() != c.want || f.Unknown() != c.unknown {
			t.Errorf("%s: %s, unknown %q; want %s, %q", c.name, f.Verdict(), f.Unknown(), c.want, c.unknown)
		}
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := Table(&out, sample()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"HOW SOON DOES A CHANGE TAKE EFFECT?", "110 +10.0 %", "110 =", "missed   eBPF, ClusterIP, against straight to the pod: at most 2 % more", "switchyard-ipvs: this kernel has no ip_vs"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "<br>") || strings.Contains(line, "|") {
			t.Errorf("a terminal shows %q", line)
		}
	}
}

func TestChanges(t *testing.T) {
	older, newer := sample(), sample()
	for _, s := range newer.Series {
		for i := range s.Samples {
			s.Samples[i] *= 2
			if s.Proxy == theirNft && s.Part == result.Traffic {
				s.Samples[i] *= 2
			}
		}
	}
	var out strings.Builder
	if err := Changes(&out, older, newer); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"beside straight", "worse", "+100.0 %", noDifference, fewSamples, unended, " better, 10 worse, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestChangesByCase sees each case once, whatever the order in which it was measured.
func TestChangesByCase(t *testing.T) {
	r := &result.Report{Proxies: []string{ebpf, nftables}}
	for _, k := range []result.Key{
		{Case: "b", Metric: "x", Proxy: nftables}, {Case: "a", Metric: "x", Proxy: nftables}, {Case: "b", Metric: "y", Proxy: nftables},
		{Case: "b", Metric: "x", Proxy: ebpf}, {Case: "b", Metric: "y", Proxy: ebpf}, {Case: "a", Metric: "x", Proxy: ebpf},
	} {
		add(r, k, "s", 1)
	}
	var out strings.Builder
	if err := Changes(&out, r, r); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		if words := strings.Fields(line); len(words) > 1 && words[0] != "0" {
			got = append(got, words[0]+" "+words[1])
		}
	}
	want := []string{": b", "x " + ebpf, "x " + nftables, "y " + ebpf, "y " + nftables, ": a", "x " + ebpf, "x " + nftables}
	if !slices.Equal(got, want) {
		t.Errorf("lines %q; want %q", got, want)
	}
}

func TestValue(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.123: "0.12", 9.996: "10.0", 99.96: "100", 999.7: "1,000", 12.34: "12.3", 123.4: "123", 1234.4: "1,234", 1234567: "1,234,567", 7: "7"} {
		if got := value(v); got != want {
			t.Errorf("%v is written %s; want %s", v, got, want)
		}
	}
}

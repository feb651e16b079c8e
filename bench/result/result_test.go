package result

import (
	"path/filepath"
	"reflect"
	"testing"
)

func TestSamples(t *testing.T) {
	for _, c := range []struct {
		samples        []float64
		median, spread float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 0},
		{[]float64{1, 3}, 2, 0.25},
		{[]float64{5, 1, 4, 2, 3}, 3, 1. / 3},
	} {
		s := Series{Samples: c.samples}
		if m, p := s.Median(), s.Spread(); m != c.median || p != c.spread {
			t.Errorf("%v: median %v, spread %v; want %v, %v", c.samples, m, p, c.median, c.spread)
		}
	}
}

// TestRatio has rounds in which the machine was slow: both suffer, the ratio does not.
func TestRatio(t *testing.T) {
	a := Series{Samples: []float64{90, 45, 90, 9, 90}}
	b := Series{Samples: []float64{100, 50, 100, 10, 100}}
	if got, spread := a.Ratio(&b); got != 0.9 || spread != 0 {
		t.Errorf("ratio %v ± %v; want 0.9 ± 0", got, spread)
	}
}

func TestReport(t *testing.T) {
	var r Report
	row := Key{Part: "traffic", Case: "pod to pod", Metric: "requests"}
	for _, proxy := range []string{"straight", "switchyard-ebpf"} {
		for i := range 3 {
			k := row
			k.Proxy = proxy
			r.Add(Series{Key: k, Unit: "/s", More: true}, float64(i))
		}
	}
	if got := r.Rows("traffic"); !reflect.DeepEqual(got, []Key{row}) {
		t.Errorf("rows %v", got)
	}
	if s := r.Of(row, "switchyard-ebpf"); s == nil || len(s.Samples) != 3 {
		t.Errorf("series %+v", s)
	}
	file := filepath.Join(t.TempDir(), "result.json")
	if err := r.Write(file); err != nil {
		t.Fatal(err)
	}
	back, err := Read(file)
	if err != nil || !reflect.DeepEqual(back.Series, r.Series) {
		t.Errorf("read back %+v, %v", back, err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.json")); err == nil {
		t.Error("a missing file was read")
	}
}

func TestCompare(t *testing.T) {
	report := func(samples ...float64) *Report {
		var r Report
		for _, s := range samples {
			r.Add(Series{Key: Key{Case: "c", Metric: "m", Proxy: "p"}, More: true}, s)
		}
		return &r
	}
	for _, c := range []struct {
		name         string
		old, new     *Report
		real, better bool
	}{
		{"the same", report(1, 2, 3, 4, 5), report(1, 2, 3, 4, 5), false, false},
		{"more, beyond chance", report(1, 2, 3, 4, 5), report(11, 12, 13, 14, 15), true, true},
		{"less, beyond chance", report(11, 12, 13, 14, 15), report(1, 2, 3, 4, 5), true, false},
		{"too few rounds to tell", report(1, 2), report(11, 12), false, true},
	} {
		got := Compare(c.old, c.new)
		if len(got) != 1 || got[0].Real != c.real || got[0].Better() != c.better {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := Compare(report(1), &Report{}); len(got) != 0 {
		t.Errorf("a series of one run compares to %v", got)
	}
}

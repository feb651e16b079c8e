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

// TestAgainst has rounds in which the machine was slow: both suffer, the
// difference does not.
func TestAgainst(t *testing.T) {
	base := Series{Samples: []float64{100, 100, 500, 100, 110, 90, 1000, 100}}
	for _, c := range []struct {
		name string
		add  []float64
		want Interval
	}{
		{"the same", []float64{0, 0, 0, 0, 0, 0, 0, 0}, Interval{0, 0, 0}},
		{"always 10 more", []float64{10, 10, 10, 10, 10, 10, 10, 10}, Interval{0.1, 0.1, 0.1}},
		{"mostly 10 more", []float64{10, 10, 10, 10, 10, 10, 90, -5}, Interval{0.1, -0.05, 0.1}},
	} {
		s := Series{}
		for i, v := range base.Samples {
			s.Samples = append(s.Samples, v+c.add[i])
		}
		if got := s.Against(&base); got != c.want {
			t.Errorf("%s: %v; want %v", c.name, got, c.want)
		}
	}
}

// TestSeen has two equal columns that seem to differ by up to 2 %.
func TestSeen(t *testing.T) {
	row := Key{Part: Traffic, Case: "c", Metric: "m"}
	r := Report{Proxies: []string{"straight", "a", "a" + Again, "b"}}
	add := func(p string, samples ...float64) {
		for _, v := range samples {
			k := row
			k.Proxy = p
			r.Add(Series{Key: k, Unit: "µs"}, v)
		}
	}
	add("straight", 100, 100, 100, 100, 100, 100, 100, 100)
	add("a", 100, 100, 100, 100, 100, 100, 100, 100)
	add("a"+Again, 98, 99, 100, 101, 101, 102, 101, 100)
	floor, ok := r.Floor(row)
	if !ok || floor.Low != -0.02 || floor.High != 0.01 {
		t.Errorf("floor %v, %v; want -2 to 1 %%", floor, ok)
	}
	for _, c := range []struct {
		i    Interval
		seen bool
	}{
		{Interval{0.05, 0.04, 0.06}, true},
		{Interval{-0.05, -0.06, -0.04}, true},
		{Interval{0.05, -0.01, 0.1}, false},  // it may be zero
		{Interval{0.01, 0.005, 0.02}, false}, // equal columns differ as much
	} {
		if got := r.Seen(row, c.i); got != c.seen {
			t.Errorf("%v seen: %v", c.i, got)
		}
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
	// beside has the samples of a proxy beside those of a reference.
	beside := func(p float64, machine ...float64) *Report {
		r := &Report{Proxies: []string{"straight", "p", "p" + Again}}
		for i, slow := range machine {
			for _, proxy := range r.Proxies {
				v := 100 * slow
				if proxy != "straight" {
					v = p * slow
				}
				if proxy == "p"+Again {
					v += float64(i%2) - 0.5
				}
				r.Add(Series{Key: Key{Part: Traffic, Case: "c", Metric: "m", Proxy: proxy}}, v)
			}
		}
		return r
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
		{"a machine half as fast", beside(110, 1, 1, 1, 1, 1, 1, 1), beside(110, 2, 2, 2, 2, 2, 2, 2), false, true},
		{"a proxy that costs a tenth more", beside(110, 1, 1, 1, 1, 1, 1, 1), beside(121, 2, 2, 2, 2, 2, 2, 2), true, false},
		{"a proxy that costs less", beside(121, 1, 1, 1, 1, 1, 1, 1), beside(110, 1, 1, 1, 1, 1, 1, 1), true, true},
		{"less than equal columns differ", beside(110, 1, 1, 1, 1, 1, 1, 1), beside(110.1, 1, 1, 1, 1, 1, 1, 1), false, false},
	} {
		var got []Change
		for _, change := range Compare(c.old, c.new) {
			if change.Proxy == "p" {
				got = append(got, change)
			}
		}
		if len(got) != 1 || got[0].Real != c.real || got[0].Better() != c.better {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := Compare(report(1), &Report{}); len(got) != 0 {
		t.Errorf("a series of one run compares to %v", got)
	}
}

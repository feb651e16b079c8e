package result

import (
	"math"

	"golang.org/x/perf/benchmath"
)

// Change is what became of one series from a run to another.
type Change struct {
	Key
	Unit       string
	More       bool
	Old, New   float64  // medians
	Difference Interval // as a share of the older
	Beside     string   // what both runs measured in the same rounds, so that the machine's speed does not count; "": nothing
	Real       bool     // it is not likely to be chance
	Over       bool     // one of them did not end in its time
	Rounds     int      // the fewer of both
}

// Compare finds the series that are in both.
func Compare(older, newer *Report) []Change {
	var all []Change
	for _, a := range older.Series {
		b := newer.Find(a.Key)
		if b == nil || len(a.Samples) == 0 || len(b.Samples) == 0 {
			continue
		}
		c := Change{Key: a.Key, Unit: a.Unit, More: a.More, Old: a.Median(), New: b.Median(), Over: a.Over || b.Over, Rounds: min(len(a.Samples), len(b.Samples))}
		if !c.besideReference(older, newer, a, b) {
			c.alone(a, b)
		}
		all = append(all, c)
	}
	return all
}

// besideReference compares how the series differ from what was measured in the same
// rounds, the first proxy of both reports.
func (c *Change) besideReference(older, newer *Report, a, b *Series) bool {
	if len(older.Proxies) == 0 || len(newer.Proxies) == 0 || older.Proxies[0] != newer.Proxies[0] || a.Part == ControlPlane || c.Rounds < Fewest {
		return false
	}
	row := c.Key
	c.Beside = older.Proxies[0]
	oldBase, newBase := older.Of(row, c.Beside), newer.Of(row, c.Beside)
	if oldBase == nil || newBase == nil || c.Beside == c.Proxy {
		c.Beside = ""
		return false
	}
	was, is := a.Against(oldBase), b.Against(newBase)
	c.Difference = is.minus(was).Scale(1 / (1 + was.Median))
	oldFloor, _ := older.Floor(row)
	newFloor, _ := newer.Floor(row)
	c.Real = !c.Difference.HasZero() && math.Abs(c.Difference.Median) > max(oldFloor.farthest(), newFloor.farthest())
	return true
}

// alone compares the samples themselves (Mann-Whitney).
func (c *Change) alone(a, b *Series) {
	thresholds := benchmath.DefaultThresholds
	x := benchmath.NewSample(append([]float64(nil), a.Samples...), &thresholds)
	y := benchmath.NewSample(append([]float64(nil), b.Samples...), &thresholds)
	got := benchmath.AssumeNothing.Compare(x, y)
	c.Real = got.P < got.Alpha
	if c.Old != 0 {
		was, is := a.Interval(), b.Interval()
		c.Difference = is.minus(was).Scale(1 / c.Old)
	}
}

// minus is the difference of two medians that know nothing of each other.
func (i Interval) minus(other Interval) Interval {
	return Interval{
		Median: i.Median - other.Median,
		Low:    i.Median - other.Median - math.Hypot(i.Median-i.Low, other.High-other.Median),
		High:   i.Median - other.Median + math.Hypot(i.High-i.Median, other.Median-other.Low),
	}
}

// Better tells whether what changed is for the better.
func (c Change) Better() bool { return (c.Difference.Median > 0) == c.More }

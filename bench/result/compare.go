package result

import (
	"golang.org/x/perf/benchmath"
)

// Change is what became of one series from a run to another.
type Change struct {
	Key
	Unit     string
	More     bool
	Old, New float64 // medians
	P        float64 // how likely such a difference is by chance (Mann-Whitney)
	Real     bool    // it is not likely to be chance
	Over     bool    // one of them did not end in its time
	Rounds   int     // the fewer of both
}

// Compare finds the series that are in both.
func Compare(older, newer *Report) []Change {
	thresholds := benchmath.DefaultThresholds
	var all []Change
	for _, a := range older.Series {
		b := newer.Find(a.Key)
		if b == nil || len(a.Samples) == 0 || len(b.Samples) == 0 {
			continue
		}
		c := Change{Key: a.Key, Unit: a.Unit, More: a.More, Old: a.Median(), New: b.Median(), P: 1, Over: a.Over || b.Over, Rounds: min(len(a.Samples), len(b.Samples))}
		x := benchmath.NewSample(append([]float64(nil), a.Samples...), &thresholds)
		y := benchmath.NewSample(append([]float64(nil), b.Samples...), &thresholds)
		got := benchmath.AssumeNothing.Compare(x, y)
		c.P = got.P
		c.Real = got.P < got.Alpha
		all = append(all, c)
	}
	return all
}

// Better tells whether what changed is for the better.
func (c Change) Better() bool { return (c.New > c.Old) == c.More }

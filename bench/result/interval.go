package result

import (
	"fmt"

	"golang.org/x/perf/benchmath"
)

// confidence that the true median lies within an Interval.
const confidence = 0.95

// Interval is a median and the bounds within which the true one lies, with 95 %
// confidence. It assumes nothing about how the samples are distributed.
type Interval struct{ Median, Low, High float64 }

// interval is that of samples; fewer than six have no bounds but themselves.
func interval(samples []float64) Interval {
	if len(samples) == 0 {
		return Interval{}
	}
	s := benchmath.AssumeNothing.Summary(benchmath.NewSample(append([]float64(nil), samples...), &benchmath.DefaultThresholds), confidence)
	i := Interval{s.Center, s.Lo, s.Hi}
	if len(samples) < Fewest {
		i.Low, i.High = minMax(samples)
	}
	return i
}

// Fewest samples of which order statistics give a bound of 95 %.
const Fewest = 6

func minMax(samples []float64) (low, high float64) {
	low, high = samples[0], samples[0]
	for _, v := range samples {
		low, high = min(low, v), max(high, v)
	}
	return low, high
}

// HasZero tells whether the true median may be zero.
func (i Interval) HasZero() bool { return i.Low <= 0 && i.High >= 0 }

// Scale multiplies all of it.
func (i Interval) Scale(by float64) Interval {
	return Interval{i.Median * by, min(i.Low*by, i.High*by), max(i.Low*by, i.High*by)}
}

// farthest is the bound that is farther from zero.
func (i Interval) farthest() float64 { return max(-i.Low, i.High) }

func (i Interval) String() string { return fmt.Sprintf("%+.3g [%+.3g %+.3g]", i.Median, i.Low, i.High) }

// Interval is that of the series' median.
func (s *Series) Interval() Interval { return interval(s.Samples) }

// Against is the difference to another series, as a share of that one's median:
// the median of what both differed by in each round, so that what the machine did
// in a round hits both.
func (s *Series) Against(other *Series) Interval {
	n := min(len(s.Samples), len(other.Samples))
	differences := make([]float64, n)
	for i := range n {
		differences[i] = s.Samples[i] - other.Samples[i]
	}
	base := quantile(other.Samples[:n], half)
	if base == 0 {
		return Interval{}
	}
	return interval(differences).Scale(1 / base)
}

// half is the median's quantile.
const half = 0.5

// Again ends the name of the column that is a proxy once more, measured like any
// other: what both differ by is noise.
const Again = " again"

// Floor is how much two equal columns of a row may seem to differ, as a share.
// Smaller differences of other columns tell nothing. There is none without a
// column that was measured twice.
func (r *Report) Floor(row Key) (floor Interval, ok bool) {
	for _, p := range r.Proxies {
		twin, found := r.Of(row, p+Again), r.Of(row, p)
		if twin != nil && found != nil && len(found.Samples) >= Fewest {
			return twin.Against(found), true
		}
	}
	return Interval{}, false
}

// Seen tells whether a difference in a row is more than noise.
func (r *Report) Seen(row Key, difference Interval) bool {
	floor, _ := r.Floor(row)
	return !difference.HasZero() && max(difference.Median, -difference.Median) > floor.farthest()
}

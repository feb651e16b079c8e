package report

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/result"
)

// headroom is what is left free above the curves, for the legend.
const headroom = 1.5

// bySize draws a metric against the number of Services; nil: there is one number, or none.
func bySize(r *result.Report, file, title string, row result.Key, log bool) (*picture, error) {
	sizes := sizesOf(r, row)
	if len(sizes) < 2 { // no line to draw
		return nil, nil
	}
	row.Services = sizes[0]
	p := newPlot(title, "Services", unit(r, row)+", with 95 % intervals")
	p.X.Scale = plot.LogScale{}
	drawn := 0
	for _, name := range r.Proxies {
		w := samplesBySize(r, row, name, sizes, drawn)
		if len(w.XYs) == 0 {
			continue
		}
		drawn++
		if err := addLine(p, name, w); err != nil {
			return nil, err
		}
	}
	if drawn == 0 {
		return nil, nil
	}
	if log {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		p.Y.Max *= headroom * headroom
	} else {
		p.Y.Min = 0
		p.Y.Max *= headroom
		p.Y.Tick.Marker = plot.TickerFunc(ticks)
	}
	p.Legend.Top, p.Legend.Left = true, true
	var marks plot.ConstantTicks
	for _, size := range sizes {
		marks = append(marks, plot.Tick{Value: float64(size), Label: result.Thousands(size)})
	}
	p.X.Tick.Marker = marks
	return &picture{Title: title, File: file, plot: p, high: high}, overs(p, r, row, sizes)
}

// ticks are some round figures of an axis, as they are written elsewhere.
func ticks(least, most float64) []plot.Tick {
	const few = 5
	step := math.Pow(10, math.Floor(math.Log10((most-least)/few)))
	for _, by := range []float64{2, 2.5, 2} { // 2, 5, 10
		if (most-least)/step > few {
			step *= by
		}
	}
	var all []plot.Tick
	for v := math.Ceil(least/step) * step; v <= most; v += step {
		all = append(all, plot.Tick{Value: v, Label: value(v)})
	}
	return all
}

// sizesOf returns the numbers of Services at which a metric was measured.
func sizesOf(r *result.Report, row result.Key) []int {
	var sizes []int
	for _, s := range r.Series {
		if s.Part == row.Part && s.Case == row.Case && s.Metric == row.Metric && s.Services > 0 && !slices.Contains(sizes, s.Services) {
			sizes = append(sizes, s.Services)
		}
	}
	slices.Sort(sizes)
	return sizes
}

// samplesBySize returns a proxy's points. Each proxy's are moved a little, so that
// intervals do not hide each other.
func samplesBySize(r *result.Report, row result.Key, name string, sizes []int, moved int) (w whiskers) {
	const step = 0.015
	for _, row.Services = range sizes {
		if s := r.Of(row, name); s != nil && !s.Over && s.Median() > 0 {
			w.add(float64(row.Services)*(1+step*float64(moved)), s.Interval())
		}
	}
	return w
}

// overs marks at the top what did not finish, each a little lower than the one before.
func overs(p *plot.Plot, r *result.Report, row result.Key, sizes []int) error {
	y := p.Y.Max
	for _, row.Services = range sizes {
		align, offset := draw.XLeft, vg.Points(8)
		if row.Services == sizes[len(sizes)-1] {
			align, offset = draw.XRight, vg.Points(-8)
		}
		for _, name := range r.Proxies {
			why := overdue(r, row, name)
			if why == "" {
				continue
			}
			at := plotter.XY{X: float64(row.Services), Y: y}
			if err := remark(p, at, name+" "+why, vg.Point{X: offset}, align); err != nil {
				return err
			}
			if err := cross(p, at, colour(name)); err != nil {
				return err
			}
			y *= lower(p)
		}
	}
	return nil
}

// lower is by how much the next mark is below one.
func lower(p *plot.Plot) float64 {
	const line = 0.04 // of the height of a plot
	if _, log := p.Y.Scale.(plot.LogScale); log {
		return math.Pow(p.Y.Min/p.Y.Max, line)
	}
	return 1 - line
}

// addLine draws a proxy's points, their intervals and the line through them.
func addLine(p *plot.Plot, name string, w whiskers) error {
	line, points, err := plotter.NewLinePoints(w.XYs)
	if err != nil {
		return fmt.Errorf("drawing %s: %w", name, err)
	}
	bars, err := plotter.NewYErrorBars(w)
	if err != nil {
		return fmt.Errorf("drawing the intervals of %s: %w", name, err)
	}
	line.Color, points.Color, bars.Color = colour(name), colour(name), colour(name)
	line.Width, bars.Width, points.Radius = vg.Points(1.5), vg.Points(1), vg.Points(2)
	if further(name) {
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	p.Add(line, bars, points)
	p.Legend.Add(name, line)
	return nil
}

// distribution draws how long requests took; equal steps to the right are ten times
// rarer ones. nil: there is nothing to draw.
func distribution(r *result.Report, file, what string) (*picture, error) {
	title := "Time of TCP requests: " + what
	p := newPlot(title, "percentile", "µs, with 95 % intervals")
	drawn := 0
	for _, name := range r.Proxies {
		at := slices.IndexFunc(r.Curves, func(c *result.Curve) bool {
			return c.Part == result.Traffic && c.Case == what && c.Metric == string(load.Requests) && c.Proxy == name
		})
		if at < 0 {
			continue
		}
		w := percentiles(r.Curves[at], drawn)
		if len(w.XYs) == 0 {
			continue
		}
		drawn++
		if err := addLine(p, name, w); err != nil {
			return nil, err
		}
	}
	if drawn == 0 {
		return nil, nil
	}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	var ticks plot.ConstantTicks
	for _, q := range drawnQuantiles() {
		ticks = append(ticks, plot.Tick{Value: rarity(q), Label: fmt.Sprintf("%g", percent*q)})
	}
	p.X.Tick.Marker = ticks
	return &picture{Title: title, File: file, plot: p, high: high}, nil
}

// drawnQuantiles are the quantiles that a distribution shows.
func drawnQuantiles() []float64 { return []float64{0.1, 0.5, 0.9, 0.99, 0.999, 0.9999} }

// rarity is where a quantile is drawn.
func rarity(q float64) float64 { return -math.Log10(1 - q) }

// percentiles returns quantiles with their intervals, by the order of the samples:
// those far enough from the end that samples are above their bounds.
func percentiles(c *result.Curve, moved int) (w whiskers) {
	const z, step = 1.96, 0.015 // 95 % of a normal distribution; as in samplesBySize
	for _, q := range drawnQuantiles() {
		d := z * math.Sqrt(q*(1-q)/float64(max(c.Count, 1)))
		if q-d <= 0 || q+d >= 1 {
			continue
		}
		i := result.Interval{Median: quantileOf(c, q), Low: quantileOf(c, q-d), High: quantileOf(c, q+d)}
		if i.Low > 0 {
			w.add(rarity(q)+step*float64(moved), i)
		}
	}
	return w
}

// quantileOf interpolates between the points of a curve.
func quantileOf(c *result.Curve, q float64) float64 {
	for i, p := range c.Points {
		if p.Quantile < q {
			continue
		}
		if i == 0 || p.Quantile == q {
			return p.Microseconds
		}
		before := c.Points[i-1]
		return before.Microseconds + (p.Microseconds-before.Microseconds)*(q-before.Quantile)/(p.Quantile-before.Quantile)
	}
	if len(c.Points) == 0 {
		return 0
	}
	return c.Points[len(c.Points)-1].Microseconds
}

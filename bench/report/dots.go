package report

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/switchyard-io/switchyard/bench/result"
)

// dots is a plot with a line for each proxy, and a dot with its interval on it for
// each kind of figure.
type dots struct {
	title, axis, unit string
	log               bool
	kinds             []string // at most as many as there are shapes
	names             []string
	dots              []dot
	band              float64 // differences below this are noise
}

// dot is one figure of a proxy.
type dot struct {
	name, kind int // indexes
	result.Interval
	over string // not "": why there is none
}

// shapes are the glyphs of the kinds.
func shapes() []draw.GlyphDrawer {
	return []draw.GlyphDrawer{draw.CircleGlyph{}, draw.PyramidGlyph{}, draw.BoxGlyph{}}
}

// draw makes the plot; nil: there is nothing to draw.
func (d dots) draw(file string) (*picture, error) {
	least, most := d.bounds()
	if least > most {
		return nil, nil
	}
	p := newPlot(d.title, d.axis, "")
	if d.log {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		const room = 3
		least, most = least/2, most*room
	} else {
		least, most = min(least, 0), most+(most-min(least, 0))/10
		p.X.Tick.Marker = plot.TickerFunc(ticks)
	}
	if err := d.noise(p); err != nil {
		return nil, err
	}
	for _, one := range d.dots {
		if err := d.one(p, one, most); err != nil {
			return nil, err
		}
	}
	if err := d.legend(p); err != nil {
		return nil, err
	}
	p.X.Min, p.X.Max = least, most
	const below, above, entry = 0.7, 0.3, 0.45 // of a line; an entry of the legend
	lines := float64(len(d.names)) + entry*float64(len(d.kinds)+1)
	p.Y.Min, p.Y.Max = -below, lines-above
	var ticks plot.ConstantTicks
	for i, n := range d.names {
		ticks = append(ticks, plot.Tick{Value: d.y(i), Label: n})
	}
	p.Y.Tick.Marker = ticks
	const head, line = 3 * vg.Centimeter, 0.95 * vg.Centimeter
	return &picture{Title: d.title, File: file, plot: p, high: head + line*vg.Length(lines)}, nil
}

// y is the height of a proxy's line; the first is on top.
func (d dots) y(name int) float64 { return float64(len(d.names) - 1 - name) }

// bounds are the least and the most figure.
func (d dots) bounds() (least, most float64) {
	least, most = math.Inf(1), math.Inf(-1)
	for _, one := range d.dots {
		if one.over == "" {
			least, most = min(least, one.Low), max(most, one.High)
		}
	}
	return least, most
}

// noise draws the band of what equal columns differ by.
func (d dots) noise(p *plot.Plot) error {
	if d.band == 0 {
		return nil
	}
	top := float64(len(d.names)) - 0.5
	band, err := plotter.NewPolygon(plotter.XYs{{X: -d.band, Y: -1}, {X: d.band, Y: -1}, {X: d.band, Y: top}, {X: -d.band, Y: top}})
	if err != nil {
		return fmt.Errorf("drawing the noise of %s: %w", d.title, err)
	}
	band.Color, band.Width = color.RGBA{0xee, 0xee, 0xee, 0xff}, 0
	p.Add(band)
	p.Legend.Add("noise: two equal columns", band)
	return nil
}

// one draws a dot, its interval and its figure.
func (d dots) one(p *plot.Plot, one dot, most float64) error {
	const apart = 0.26
	y := d.y(one.name) + apart*(float64(len(d.kinds)-1)/2-float64(one.kind))
	c := colour(d.names[one.name])
	if one.over != "" {
		at := plotter.XY{X: most, Y: y}
		if err := remark(p, at, one.over, vg.Point{X: vg.Points(-8)}, draw.XRight); err != nil {
			return err
		}
		return cross(p, at, c)
	}
	var w whiskers
	w.along(y, one.Interval)
	bars, err := plotter.NewXErrorBars(w)
	if err != nil {
		return fmt.Errorf("drawing %s: %w", d.names[one.name], err)
	}
	bars.Color, bars.Width = c, vg.Points(1.5)
	point, err := plotter.NewScatter(w.XYs)
	if err != nil {
		return fmt.Errorf("drawing %s: %w", d.names[one.name], err)
	}
	point.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(3.5), Shape: shapes()[one.kind]}
	p.Add(bars, point)
	return remark(p, plotter.XY{X: one.High, Y: y}, d.label(one.Median), vg.Point{X: vg.Points(6)}, draw.XLeft)
}

// label writes a figure beside its dot.
func (d dots) label(v float64) string {
	if d.unit == "%" {
		return fmt.Sprintf("%+.1f %%", v)
	}
	return quantity(v, d.unit)
}

// legend says what the shapes are.
func (d dots) legend(p *plot.Plot) error {
	p.Legend.Top = true
	for i, k := range d.kinds {
		s, err := plotter.NewScatter(plotter.XYs{{}})
		if err != nil {
			return fmt.Errorf("drawing the legend of %s: %w", d.title, err)
		}
		s.GlyphStyle = draw.GlyphStyle{Color: color.Black, Radius: vg.Points(3.5), Shape: shapes()[i]}
		p.Legend.Add(k, s)
	}
	return nil
}

package report

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// picture is a plot and the name of its files.
type picture struct {
	Title string
	File  string // without the ending
	plot  *plot.Plot
	high  vg.Length
}

// Alternative is what a picture says to who cannot see it.
func (p *picture) Alternative() string { return strings.ToLower(p.Title[:1]) + p.Title[1:] }

const wide, high = 18 * vg.Centimeter, 11 * vg.Centimeter

// save draws the picture as PNG and SVG.
func (p *picture) save(dir string) error {
	for _, format := range []string{"png", "svg"} {
		drawn, err := p.plot.WriterTo(wide, p.high, format)
		if err != nil {
			return fmt.Errorf("drawing %s: %w", p.File, err)
		}
		var b bytes.Buffer
		if _, err := drawn.WriteTo(&b); err != nil {
			return fmt.Errorf("drawing %s: %w", p.File, err)
		}
		picture := b.Bytes()
		if format == "svg" { // where that font is not, one with letters as wide
			picture = bytes.ReplaceAll(picture, []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
		}
		if err := os.WriteFile(filepath.Join(dir, p.File+"."+format), picture, 0o644); err != nil {
			return fmt.Errorf("drawing %s: %w", p.File, err)
		}
	}
	return nil
}

// colour is the same for a proxy in every plot, and a lighter one for its further
// columns. They stay apart for most colour-blind eyes.
func colour(name string) color.Color {
	c, ok := map[string]color.RGBA{
		proxy.Straight:        {0x55, 0x55, 0x55, 0xff},
		proxy.Conntrack:       {0x8c, 0x8c, 0x8c, 0xff},
		proxy.OneRule:         {0x8c, 0x6d, 0x31, 0xff},
		"switchyard-ebpf":     {0x00, 0x72, 0xb2, 0xff},
		"switchyard-nftables": {0x00, 0x00, 0x00, 0xff},
		"switchyard-ipvs":     {0x56, 0xb4, 0xe9, 0xff},
		"switchyard-iptables": {0x00, 0x9e, 0x73, 0xff},
		"kube-proxy-ipvs":     {0xcc, 0x79, 0xa7, 0xff},
		"kube-proxy-iptables": {0xd5, 0x5e, 0x00, 0xff},
		"kube-proxy-nftables": {0xe6, 0x9f, 0x00, 0xff},
	}[base(name)]
	if !ok {
		c = color.RGBA{0x99, 0x33, 0x99, 0xff}
	}
	if further(name) {
		c.R, c.G, c.B = lighter(c.R), lighter(c.G), lighter(c.B)
	}
	return c
}

// further tells whether a column is a second one of a proxy.
func further(name string) bool { return base(name) != name }

func lighter(c uint8) uint8 { return c/2 + 0x7f }

// newPlot makes an empty plot.
func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Legend.Padding, p.Title.Padding = vg.Points(2), vg.Points(6)
	const text = 10
	for _, f := range []*font.Font{&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font, &p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.Legend.TextStyle.Font} {
		*f = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(text)}
	}
	p.Title.TextStyle.Font.Size = vg.Points(text + 2)
	p.Add(plotter.NewGrid())
	return p
}

// whiskers are points with intervals.
type whiskers struct {
	plotter.XYs
	plotter.XErrors
	plotter.YErrors
}

// add adds a point with its interval along the y axis.
func (w *whiskers) add(x float64, i result.Interval) {
	w.XYs = append(w.XYs, plotter.XY{X: x, Y: i.Median})
	w.YErrors = append(w.YErrors, struct{ Low, High float64 }{i.Low - i.Median, i.High - i.Median})
}

// along adds a point with its interval along the x axis.
func (w *whiskers) along(y float64, i result.Interval) {
	w.XYs = append(w.XYs, plotter.XY{X: i.Median, Y: y})
	w.XErrors = append(w.XErrors, struct{ Low, High float64 }{i.Low - i.Median, i.High - i.Median})
}

// remark writes words beside a point.
func remark(p *plot.Plot, at plotter.XY, words string, offset vg.Point, align draw.XAlignment) error {
	l, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{at}, Labels: []string{words}})
	if err != nil {
		return fmt.Errorf("writing %q in a plot: %w", words, err)
	}
	l.Offset = offset
	l.TextStyle[0].Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(8)}
	l.TextStyle[0].XAlign, l.TextStyle[0].YAlign = align, draw.YCenter
	p.Add(l)
	return nil
}

// cross marks what did not finish.
func cross(p *plot.Plot, at plotter.XY, c color.Color) error {
	s, err := plotter.NewScatter(plotter.XYs{at})
	if err != nil {
		return fmt.Errorf("marking what did not finish: %w", err)
	}
	s.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(4), Shape: draw.CrossGlyph{}}
	p.Add(s)
	return nil
}

package report

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/result"
)

// colour is the same for a proxy in every plot. They stay apart for most
// colour-blind eyes.
func colour(proxy string) color.Color {
	c, ok := map[string]color.RGBA{
		"straight":            {0x55, 0x55, 0x55, 0xff},
		"switchyard-ebpf":     {0x00, 0x72, 0xb2, 0xff},
		"switchyard-nftables": {0x00, 0x00, 0x00, 0xff},
		"switchyard-ipvs":     {0x56, 0xb4, 0xe9, 0xff},
		"switchyard-iptables": {0x00, 0x9e, 0x73, 0xff},
		"kube-proxy-ipvs":     {0xcc, 0x79, 0xa7, 0xff},
		"kube-proxy-iptables": {0xd5, 0x5e, 0x00, 0xff},
		"kube-proxy-nftables": {0xe6, 0x9f, 0x00, 0xff},
	}[proxy]
	if !ok {
		return color.Black
	}
	return c
}

// Plot is a picture in files.
type Plot struct{ Title, File string } // without the ending

// Plots draws all that there is data for into a directory, each as PNG and SVG.
func Plots(r *result.Report, dir string) ([]Plot, error) {
	var all []Plot
	save := func(p *plot.Plot, file string) error {
		if p == nil {
			return nil
		}
		const width, height = 18 * vg.Centimeter, 11 * vg.Centimeter
		for _, ending := range []string{".png", ".svg"} {
			if err := p.Save(width, height, filepath.Join(dir, file+ending)); err != nil {
				return fmt.Errorf("drawing %s: %w", file, err)
			}
		}
		all = append(all, Plot{p.Title.Text, file})
		return nil
	}
	for _, s := range []struct {
		file string
		what string
	}{{"latency-clusterip", result.PodToClusterIP}, {"latency-nodeport", result.OutsideToNodePort}} {
		p, err := latencies(r, s.what)
		if err != nil {
			return nil, err
		}
		if err := save(p, s.file); err != nil {
			return nil, err
		}
	}
	for _, s := range []struct {
		file, title, y string
		row            result.Key
		log            bool
	}{
		{"first-packet", "First packet: median time to connect to a ClusterIP", "µs", result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean}, false},
		{"cold-start", "Cold start until all Services answer (10 endpoints each)", "s", result.Key{Part: result.ControlPlane, Case: result.ColdStart, Metric: result.Time}, true},
		{"memory", "Resident memory of the proxy (10 endpoints each)", "MB", result.Key{Part: result.ControlPlane, Case: result.Memory, Metric: result.Resident}, false},
	} {
		p, err := costs(r, s.title, s.y, s.row, s.log)
		if err != nil {
			return nil, err
		}
		if err := save(p, s.file); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// headroom is what is left free above the curves, for the legend.
const headroom = 1.6

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Legend.Top, p.Legend.Left, p.Legend.Padding = true, true, vg.Points(2)
	p.Title.Padding = vg.Points(6)
	p.Add(plotter.NewGrid())
	return p
}

func addLine(p *plot.Plot, proxy string, xys plotter.XYs, marks bool) error {
	line, points, err := plotter.NewLinePoints(xys)
	if err != nil {
		return fmt.Errorf("drawing %s: %w", proxy, err)
	}
	line.Color, points.Color = colour(proxy), colour(proxy)
	line.Width = vg.Points(2)
	p.Add(line)
	if marks {
		p.Add(points)
	}
	p.Legend.Add(proxy, line)
	return nil
}

// latencies draws distributions; equal steps to the right are ten times rarer requests.
func latencies(r *result.Report, what string) (*plot.Plot, error) {
	p := newPlot("Latency of TCP requests: "+what, "percentile", "µs")
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.301, Label: "50"}, {Value: 1, Label: "90"}, {Value: 2, Label: "99"}, {Value: 3, Label: "99.9"}, {Value: 4, Label: "99.99"}}
	n := 0
	for _, name := range r.Proxies {
		at := slices.IndexFunc(r.Curves, func(c *result.Curve) bool {
			return c.Case == what && c.Metric == string(load.Requests) && c.Proxy == name
		})
		if at < 0 {
			continue
		}
		var xys plotter.XYs
		for _, pt := range r.Curves[at].Points {
			if pt.Microseconds > 0 {
				xys = append(xys, plotter.XY{X: -math.Log10(1 - pt.Quantile), Y: pt.Microseconds})
			}
		}
		if len(xys) == 0 {
			continue
		}
		n++
		if err := addLine(p, name, xys, false); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, nil
	}
	return p, nil
}

// costs draws a metric against the number of Services. What did not end in its
// time is left out.
func costs(r *result.Report, title, y string, row result.Key, log bool) (*plot.Plot, error) {
	p := newPlot(title, "Services", y)
	p.X.Scale = plot.LogScale{}
	if log {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	} else {
		p.Y.Min = 0
	}
	sizes := map[float64]bool{}
	for _, name := range r.Proxies {
		var xys plotter.XYs
		for _, s := range r.Series {
			if s.Part == row.Part && s.Case == row.Case && s.Metric == row.Metric && s.Proxy == name && !s.Over && s.Median() > 0 {
				xys = append(xys, plotter.XY{X: float64(s.Services), Y: s.Median()})
				sizes[float64(s.Services)] = true
			}
		}
		if len(xys) == 0 {
			continue
		}
		if err := addLine(p, name, xys, true); err != nil {
			return nil, err
		}
	}
	if len(sizes) < 2 { // no line to draw
		return nil, nil
	}
	p.Y.Max *= headroom
	if log {
		p.Y.Max *= headroom
	}
	var ticks plot.ConstantTicks
	for size := range sizes {
		ticks = append(ticks, plot.Tick{Value: size, Label: result.Thousands(int(size))})
	}
	p.X.Tick.Marker = ticks
	return p, nil
}

// alternative is what a picture says to who cannot see it.
func alternative(p Plot) string { return strings.ToLower(p.Title[:1]) + p.Title[1:] }

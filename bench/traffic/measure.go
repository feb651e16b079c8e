package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/paired"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// metric is what is measured along each path.
type metric struct {
	load.Kind
	port  int
	fresh bool // each operation is a new flow
}

func metrics() []metric {
	return []metric{
		{load.Requests, tcpPort, false},
		{load.Connections, tcpPort, true},
		{load.UDPRequests, udpPort, false},
		{load.UDPBatches, udpPort, false},
		{load.UDPFlows, udpPort, true},
		{load.Throughput, bulkPort, false},
	}
}

// warm is how long a session works before it is measured.
const warm = 5 * time.Millisecond

// series says how a report tells of a metric.
func (m metric) series(way path, p string) result.Series {
	s := result.Series{Key: result.Key{Part: result.Traffic, Case: way.name, Metric: string(m.Kind), Proxy: p}, Unit: "µs"}
	if m.Kind == load.Throughput {
		s.Unit, s.More = "Gbit/s", true
	}
	return s
}

// figure is what a slice says.
func (m metric) figure(s load.Slice) float64 {
	if m.Kind == load.Throughput {
		const bits, kilo = 8, 1e3 // a bit for each nanosecond is a Gbit/s
		return m.Operations() * bits / (s.Each() * kilo)
	}
	return s.Each() / m.Operations()
}

// lane is a session through one proxy.
type lane struct {
	proxy          *proxy.Proxy
	client, server *load.Host
	session        *load.Session
	metric         metric
	slice          time.Duration
}

// open opens a session, and proves which way it goes.
func (b *bench) open(p *proxy.Proxy, way path, m metric) (*lane, error) {
	l := &lane{proxy: p, client: way.from(p), server: p.Remote, metric: m, slice: b.Slice}
	if way.service != remote {
		l.server = p.Local
	}
	if err := p.Begin(); err != nil {
		return nil, err
	}
	var err error
	if l.session, err = l.client.Open(load.Job{Kind: m.Kind, Targets: []netip.AddrPort{b.target(p, way, m.port)}}); err != nil {
		return nil, err
	}
	return l, l.prove()
}

// prove works for a moment, after which the kernel has to have counted the flows
// as the proxy's.
func (l *lane) prove() error {
	s, err := l.session.Slice(warm)
	if err != nil {
		return err
	}
	flows := 1
	if l.metric.fresh {
		flows = s.Done
	}
	return l.proxy.Prove(flows)
}

// names of a lane's figures.
const (
	figure = "figure"
	cpu    = "cpu"
)

// measure works for one slice.
func (l *lane) measure() (paired.Sample, error) {
	// Or new flows would come upon what the kernel remembers of earlier ones.
	if l.metric.fresh {
		if err := l.proxy.ForgetFlows(); err != nil {
			return nil, err
		}
	}
	before, err := l.cpu()
	if err != nil {
		return nil, err
	}
	s, err := l.session.Slice(l.slice)
	if err != nil {
		return nil, err
	}
	after, err := l.cpu()
	if err != nil {
		return nil, err
	}
	return paired.Sample{
		figure: l.metric.figure(s),
		cpu:    float64((after - before).Nanoseconds()) / float64(time.Microsecond) / l.cpuUnits(s),
	}, nil
}

// cpuUnits is by what CPU time is told: requests, or megabytes.
func (l *lane) cpuUnits(s load.Slice) float64 {
	if l.metric.Kind == load.Throughput {
		return float64(s.Done) * l.metric.Operations() / 1e6
	}
	return float64(s.Done) * l.metric.Operations()
}

// cpu is what client and server have taken so far.
func (l *lane) cpu() (time.Duration, error) {
	client, err := l.client.CPU()
	if err != nil {
		return 0, err
	}
	server, err := l.server.CPU()
	return client + server, err
}

// row measures one metric of one path through all proxies, side by side.
func (b *bench) row(ctx context.Context, way path, m metric) (err error) {
	var lanes []*lane
	var columns []paired.Column
	defer func() {
		for _, l := range lanes {
			times, closeErr := l.session.Close()
			if err = errors.Join(err, closeErr); err == nil {
				b.keepCurve(way, m, l.proxy, times)
			}
		}
	}()
	for _, p := range b.proxies {
		l, err := b.open(p, way, m)
		if l != nil && l.session != nil {
			lanes = append(lanes, l)
		}
		if err != nil {
			return fmt.Errorf("%s, %s, %s: %w", p.Name, way.name, m.Kind, err)
		}
		columns = append(columns, paired.Column{Name: p.Name, Slice: l.measure})
	}
	resume, err := b.pause()
	defer func() { err = errors.Join(err, resume()) }()
	if err != nil {
		return err
	}
	return paired.Rounds(ctx, b.rounds(way), columns, func(c int, s paired.Sample) {
		series := m.series(way, b.proxies[c].Name)
		b.report.Add(series, s[figure])
		series.Metric, series.More, series.Unit = result.CPU+series.Metric, false, "µs"
		if m.Kind == load.Throughput {
			series.Unit = "µs/MB"
		}
		b.report.Add(series, s[cpu])
	})
}

// pause stops the programs of all proxies until resume is called: what they have
// programmed forwards, and what else they do would be noise.
func (b *bench) pause() (resume func() error, err error) {
	for _, p := range b.proxies {
		err = errors.Join(err, p.Pause())
	}
	return func() (err error) {
		for _, p := range b.proxies {
			err = errors.Join(err, p.Resume())
		}
		return err
	}, err
}

// keepCurve keeps the distribution of the times of requests.
func (b *bench) keepCurve(way path, m metric, p *proxy.Proxy, times *hdrhistogram.Histogram) {
	if m.Kind == load.UDPBatches || m.Kind == load.Throughput {
		return // a request has no time of its own
	}
	key := m.series(way, p.Name).Key
	b.report.Curves = append(b.report.Curves, &result.Curve{Key: key, Points: points(times), Count: times.TotalCount()})
}

// points are where a plot of a distribution goes through.
func points(h *hdrhistogram.Histogram) []result.Point {
	var out []result.Point
	for left := 1.0; left > 1/float64(max(h.TotalCount(), 1)); left *= 0.8 {
		out = append(out, result.Point{Quantile: 1 - left, Microseconds: float64(h.ValueAtPercentile(100*(1-left))) / 1e3})
	}
	return out
}

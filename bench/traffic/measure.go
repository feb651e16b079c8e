package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The metrics.
const (
	requestCPU     = "CPU of the machine for a request"
	latency        = "latency at a fixed rate, "
	connectRate    = "new connections with a request each"
	connectCPU     = "CPU of the machine for a connection"
	udpRate        = "UDP requests, one socket"
	udpPackets     = "UDP datagrams received"
	perSecond      = "/s"
	microseconds   = "µs"
	gigabits       = "Gbit/s"
	connectWorkers = 4
)

// measure measures one path through one proxy.
func (b *bench) measure(p *proxy.Proxy, way path) error {
	for _, m := range []func(*proxy.Proxy, path) (int, error){b.requests, b.openLoop, b.connects, b.udpRequests, b.datagrams, b.stream, b.streams} {
		if err := p.Begin(); err != nil {
			return err
		}
		connections, err := m(p, way)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", p.Name, way.name, err)
		}
		if err := p.Prove(connections); err != nil {
			return fmt.Errorf("%s, %s: %w", p.Name, way.name, err)
		}
	}
	return nil
}

func (b *bench) add(p *proxy.Proxy, way path, metric, unit string, more bool, sample float64) {
	b.report.Add(result.Series{Key: result.Key{Part: result.Traffic, Case: way.name, Metric: metric, Proxy: p.Name}, Unit: unit, More: more}, sample)
}

// run does a job that must not fail, and tells the CPU time of the machine for
// each request.
func (b *bench) run(p *proxy.Proxy, way path, j load.Job) (*load.Outcome, float64, error) {
	before := busy()
	o, err := way.from(p).Run(j)
	took := busy() - before
	switch {
	case err != nil:
		return nil, 0, err
	case o.Failed > 0:
		return nil, 0, fmt.Errorf("%s: %d of %d requests failed, the first: %s", j.Kind, o.Failed, o.Failed+o.Requests, o.Error)
	case o.Requests == 0:
		return nil, 0, fmt.Errorf("%s: not one request was answered", j.Kind)
	}
	return o, took.Seconds() * 1e6 / float64(o.Requests), nil
}

func (b *bench) requests(p *proxy.Proxy, way path) (int, error) {
	o, cpu, err := b.run(p, way, load.Job{Kind: load.RequestResponse, Targets: []netip.AddrPort{b.target(p, way, tcpPort)}, Duration: b.Sample})
	if err != nil {
		return 0, err
	}
	b.add(p, way, result.Requests, perSecond, true, float64(o.Requests)/o.Took.Seconds())
	b.add(p, way, requestCPU, microseconds, false, cpu)
	return 1, nil
}

func (b *bench) openLoop(p *proxy.Proxy, way path) (int, error) {
	o, _, err := b.run(p, way, load.Job{Kind: load.OpenLoop, Targets: []netip.AddrPort{b.target(p, way, tcpPort)}, Duration: b.Sample, Rate: b.Rate})
	if err != nil {
		return 0, err
	}
	h := o.Histogram()
	for _, q := range []float64{50, 90, 99, 99.9} {
		b.add(p, way, fmt.Sprintf("%sp%g", latency, q), microseconds, false, float64(h.ValueAtPercentile(q))/1e3)
	}
	key := result.Key{Part: result.Traffic, Case: way.name, Metric: latency, Proxy: p.Name}
	if b.curves[key] == nil {
		b.curves[key] = load.NewHistogram()
	}
	b.curves[key].Merge(h)
	return 1, nil
}

func (b *bench) connects(p *proxy.Proxy, way path) (int, error) {
	o, cpu, err := b.run(p, way, load.Job{Kind: load.ConnectRate, Targets: []netip.AddrPort{b.target(p, way, tcpPort)}, Duration: b.Sample, Workers: connectWorkers})
	if err != nil {
		return 0, err
	}
	b.add(p, way, connectRate, perSecond, true, float64(o.Requests)/o.Took.Seconds())
	b.add(p, way, connectCPU, microseconds, false, cpu)
	return o.Requests, nil
}

func (b *bench) udpRequests(p *proxy.Proxy, way path) (int, error) {
	o, _, err := b.run(p, way, load.Job{Kind: load.UDPResponse, Targets: []netip.AddrPort{b.target(p, way, udpPort)}, Duration: b.Sample})
	if err != nil {
		return 0, err
	}
	b.add(p, way, udpRate, perSecond, true, float64(o.Requests)/o.Took.Seconds())
	return 1, nil
}

func (b *bench) datagrams(p *proxy.Proxy, way path) (int, error) {
	server := p.Remote
	if way.service != remote {
		server = p.Local
	}
	before, err := server.Sunk()
	if err != nil {
		return 0, err
	}
	o, _, err := b.run(p, way, load.Job{Kind: load.UDPFlood, Targets: []netip.AddrPort{b.target(p, way, sinkPort)}, Duration: b.Sample})
	if err != nil {
		return 0, err
	}
	after, err := server.Sunk()
	if err != nil {
		return 0, err
	}
	b.add(p, way, udpPackets, perSecond, true, float64(after-before)/o.Took.Seconds())
	return 1, nil
}

func (b *bench) stream(p *proxy.Proxy, way path) (int, error)  { return b.iperf(p, way, 1) }
func (b *bench) streams(p *proxy.Proxy, way path) (int, error) { return b.iperf(p, way, 8) }

// iperf measures throughput. A server that is still busy with the client before
// says so; it is asked again.
func (b *bench) iperf(p *proxy.Proxy, way path, streams int) (int, error) {
	to := b.target(p, way, iperfPort)
	const tries = 20
	var err error
	for range tries {
		ctx, cancel := context.WithTimeout(context.Background(), netlab.Patient(30*time.Second))
		var out string
		out, err = way.from(p).Host.Run(ctx, "iperf3", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())),
			"-n", b.Bytes, "-P", strconv.Itoa(streams), "-J")
		cancel()
		if err == nil {
			var got struct {
				End struct {
					Received struct {
						Rate float64 `json:"bits_per_second"`
					} `json:"sum_received"`
				}
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				return 0, fmt.Errorf("reading what iperf3 says: %w", err)
			}
			b.add(p, way, fmt.Sprintf("%s%d", result.Throughput, streams), gigabits, true, got.End.Received.Rate/1e9)
			return streams + 1, nil // and the control connection
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, err
}

// busy is the CPU time that the machine has spent on anything.
func busy() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(first)
	const ( // user nice system idle iowait irq softirq steal
		idle, iowait = 4, 5
		last         = 7
		tick         = 10 * time.Millisecond
	)
	var sum time.Duration
	for i := 1; i <= last && i < len(fields); i++ {
		if i != idle && i != iowait {
			n, _ := strconv.ParseInt(fields[i], 10, 64)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// keepCurves keeps the distributions of latency.
func (b *bench) keepCurves() {
	for key, h := range b.curves {
		b.report.Curves = append(b.report.Curves, &result.Curve{Key: key, Points: points(h), Count: h.TotalCount()})
	}
}

// points are where a plot of a distribution goes through.
func points(h *hdrhistogram.Histogram) []result.Point {
	var out []result.Point
	for left := 1.0; left > 1/float64(max(h.TotalCount(), 1)); left *= 0.8 {
		out = append(out, result.Point{Quantile: 1 - left, Microseconds: float64(h.ValueAtPercentile(100*(1-left))) / 1e3})
	}
	return out
}

package scale

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	manyEndpoints = 1000 // of the largest Service
	manyPorts     = 400  // of the Service with the most
	churnRate     = 100  // changes a second
)

// answer waits for an answer by a server (0: any) and tells how long after begin
// it came.
func (w *work) answer(p *proxy.Proxy, to netip.AddrPort, want byte, begin time.Duration) (time.Duration, error) {
	at, err := p.Pod.Probe(load.Probe{Targets: []netip.AddrPort{to}, Want: want, Timeout: netlab.Patient(30 * time.Second)})
	return at - begin, err
}

// added creates Services one at a time.
func (w *work) added(ctx context.Context, p *proxy.Proxy) error {
	w.Progress("%s Services, %s: one more", result.Thousands(w.size), p.Name)
	h := load.NewHistogram()
	for i := range w.Rounds {
		time.Sleep(w.Pause)
		s := control.Service{Name: fmt.Sprintf("added-%d", i), Ports: udp(), Endpoints: proxy.Many(endpoints)}
		begin := load.Now()
		placed, err := w.plane.Create(ctx, s)
		if err != nil {
			return err
		}
		took, err := w.answer(p, placed.ClusterIP(4, 0), 0, begin)
		if err != nil {
			return err
		}
		_ = h.RecordValue(int64(took)) // within its bounds
		w.add(p, "one Service added, until it answers", "each time", "ms", milliseconds(took))
		if err := w.plane.Delete(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// toggle is a Service whose one endpoint moves from node to node.
type toggle struct {
	control.Service
	placed *control.Placed
	local  bool
	local1 control.Endpoint
	remote control.Endpoint
}

func (w *work) newToggle(ctx context.Context, p *proxy.Proxy, name string, ports []control.Port) (*toggle, error) {
	t := &toggle{local: true, Service: control.Service{Name: name, Ports: ports}}
	t.local1, t.remote = p.Endpoints()
	t.Endpoints = []control.Endpoint{t.local1}
	var err error
	if t.placed, err = w.plane.Create(ctx, t.Service); err != nil {
		return nil, err
	}
	_, err = w.answer(p, t.placed.ClusterIP(4, len(ports)-1), proxy.LocalID, load.Now())
	return t, err
}

// move moves the endpoint and tells how long it took until the last port of the
// Service led there.
func (w *work) move(ctx context.Context, p *proxy.Proxy, t *toggle) (time.Duration, error) {
	t.local = !t.local
	want := proxy.RemoteID
	t.Endpoints = []control.Endpoint{t.remote}
	if t.local {
		want = proxy.LocalID
		t.Endpoints = []control.Endpoint{t.local1}
	}
	// Or a new socket whose port an earlier one had would go where that one went.
	if err := p.ForgetFlows(); err != nil {
		return 0, err
	}
	begin := load.Now()
	type answered struct {
		took time.Duration
		err  error
	}
	probed := make(chan answered, 1)
	go func() {
		took, err := w.answer(p, t.placed.ClusterIP(4, len(t.Ports)-1), want, begin)
		probed <- answered{took, err}
	}()
	if err := w.plane.SetEndpoints(ctx, t.Service); err != nil {
		<-probed
		return 0, err
	}
	a := <-probed
	return a.took, a.err
}

// alone changes an endpoint after a pause, so that no proxy is held up by what it
// did before.
func (w *work) alone(ctx context.Context, p *proxy.Proxy) error {
	return w.moves(ctx, p, "alone", result.EndpointChanged(w.Pause), w.Alone, w.Pause, time.Hour)
}

// row changes an endpoint soon after the change before is in force.
func (w *work) row(ctx context.Context, p *proxy.Proxy) error {
	return w.moves(ctx, p, "row", result.EndpointChanged(w.RowPause), w.Row, w.RowPause, w.RowLimit)
}

func (w *work) moves(ctx context.Context, p *proxy.Proxy, name, what string, n int, pause, limit time.Duration) error {
	w.Progress("%s Services, %s: %s", result.Thousands(w.size), p.Name, what)
	t, err := w.newToggle(ctx, p, name, udp())
	if err != nil {
		return err
	}
	h := load.NewHistogram()
	for begin := time.Now(); n > 0 && time.Since(begin) < limit; n-- {
		time.Sleep(pause)
		took, err := w.move(ctx, p, t)
		if err != nil {
			return err
		}
		_ = h.RecordValue(int64(took)) // within its bounds
	}
	w.add(p, what, "p50", "ms", float64(h.ValueAtPercentile(50))/1e6)
	w.add(p, what, "p99", "ms", float64(h.ValueAtPercentile(99))/1e6)
	w.add(p, what, "changes", "", float64(h.TotalCount()))
	return w.plane.Delete(ctx, t.Service)
}

// large creates a Service with many endpoints.
func (w *work) large(ctx context.Context, p *proxy.Proxy) error {
	w.Progress("%s Services, %s: one with %s endpoints", result.Thousands(w.size), p.Name, result.Thousands(manyEndpoints))
	return w.appear(ctx, p, fmt.Sprintf("a Service of %s endpoints, until it answers", result.Thousands(manyEndpoints)),
		control.Service{Name: "large", Ports: udp(), Endpoints: proxy.Many(manyEndpoints)})
}

// ports creates a Service with many ports, and moves its endpoint.
func (w *work) ports(ctx context.Context, p *proxy.Proxy) error {
	w.Progress("%s Services, %s: one with %d ports", result.Thousands(w.size), p.Name, manyPorts)
	var ports []control.Port
	for i := range int32(manyPorts) {
		ports = append(ports, control.Port{Protocol: corev1.ProtocolUDP, Port: 1000 + i, Target: load.EchoPort})
	}
	if err := w.appear(ctx, p, fmt.Sprintf("a Service of %d ports × %d endpoints, until the last answers", manyPorts, endpoints),
		control.Service{Name: "ports", Ports: ports, Endpoints: proxy.Many(endpoints)}); err != nil {
		return err
	}
	time.Sleep(w.Pause)
	t, err := w.newToggle(ctx, p, "ports-move", ports)
	if err != nil {
		return err
	}
	for range w.Rounds {
		time.Sleep(w.Pause)
		took, err := w.move(ctx, p, t)
		if err != nil {
			return err
		}
		w.add(p, fmt.Sprintf("one endpoint of a Service of %d ports changed", manyPorts), "each time", "ms", milliseconds(took))
	}
	return w.plane.Delete(ctx, t.Service)
}

// appear creates a Service and waits for the last of its ports.
func (w *work) appear(ctx context.Context, p *proxy.Proxy, what string, s control.Service) error {
	time.Sleep(w.Pause)
	begin := load.Now()
	placed, err := w.plane.Create(ctx, s)
	if err != nil {
		return err
	}
	took, err := w.answer(p, placed.ClusterIP(4, len(s.Ports)-1), 0, begin)
	if err != nil {
		return err
	}
	w.add(p, what, "time", "ms", milliseconds(took))
	return w.plane.Delete(ctx, s)
}

// churn changes other Services all the time, and one endpoint each second whose
// change is timed.
func (w *work) churn(ctx context.Context, p *proxy.Proxy) error {
	w.Progress("%s Services, %s: %d changes a second for %s", result.Thousands(w.size), p.Name, churnRate, w.Churn)
	t, err := w.newToggle(ctx, p, "churn", udp())
	if err != nil {
		return err
	}
	before, err := w.counts(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var others sync.WaitGroup
	var changed int
	var changeErr error
	others.Go(func() { changed, changeErr = w.changeOthers(ctx) })
	h := load.NewHistogram()
	begin := time.Now()
	for time.Since(begin) < w.Churn {
		time.Sleep(time.Second)
		took, err := w.move(ctx, p, t)
		if err != nil {
			cancel()
			others.Wait()
			return err
		}
		_ = h.RecordValue(int64(took)) // within its bounds
	}
	took := time.Since(begin)
	cancel()
	others.Wait()
	if changeErr != nil {
		return changeErr
	}
	after, err := w.counts(p)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d changes a second", churnRate)
	w.add(p, what, "lag of a change, p50", "ms", float64(h.ValueAtPercentile(50))/1e6)
	w.add(p, what, "lag of a change, most", "ms", float64(h.Max())/1e6)
	w.add(p, what, "CPU of the proxy", "% of a core", 100*(after.cpu-before.cpu).Seconds()/took.Seconds())
	w.add(p, what, "changes made", "/s", float64(changed)/took.Seconds())
	w.add(p, what, "syncs", "/s", (after.syncs-before.syncs)/took.Seconds())
	if after.rules > 0 {
		w.add(p, what, "rules written", "/s", (after.rules-before.rules)/took.Seconds())
	}
	return w.plane.Delete(context.WithoutCancel(ctx), t.Service)
}

// counts is what a proxy has done so far.
type counts struct {
	cpu          time.Duration
	syncs, rules float64
}

func (w *work) counts(p *proxy.Proxy) (counts, error) {
	u, err := p.Usage()
	if err != nil {
		return counts{}, err
	}
	m, err := p.Metrics()
	if err != nil {
		return counts{}, err
	}
	return counts{
		cpu:   u.CPU,
		syncs: m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_count", `ip_family="IPv4"`),
		rules: m.Sum("switchyard_iptables_rules_written_total", ""),
	}, nil
}

// changeOthers takes an endpoint from each of 100 Services, gives it back a second
// later, and goes on with the next 100 until ctx ends. It leaves all as it was.
func (w *work) changeOthers(ctx context.Context) (n int, err error) {
	tick := time.NewTicker(time.Second / churnRate)
	defer tick.Stop()
	for ; ; n++ {
		block := n / churnRate
		first, at, take := block/2*churnRate, n%churnRate, block%2 == 0
		select {
		case <-ctx.Done():
			if take {
				return n, w.giveBack(context.WithoutCancel(ctx), first, at)
			}
			return n, w.giveBack(context.WithoutCancel(ctx), first+at, churnRate-at)
		case <-tick.C:
		}
		s := w.have[(first+at)%len(w.have)].Service
		if take {
			s.Endpoints = s.Endpoints[1:]
		}
		if err := w.plane.SetEndpoints(context.WithoutCancel(ctx), s); err != nil {
			return n, err
		}
	}
}

func (w *work) giveBack(ctx context.Context, first, n int) error {
	for i := range n {
		if err := w.plane.SetEndpoints(ctx, w.have[(first+i)%len(w.have)].Service); err != nil {
			return err
		}
	}
	return nil
}

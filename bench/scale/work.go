package scale

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// endpoints of each Service that fills the cluster.
const endpoints = 10

// Work says how the proxies' own work is measured. They run one at a time, each
// in a new lab.
type Work struct {
	Rounds   int
	Sizes    []int
	Main     int // the size at which all is measured; at the others just starts and memory
	Within   time.Duration
	Alone    int           // changes with a pause before each
	Pause    time.Duration // longer than kube-proxy's least time between two syncs
	Row      int           // changes with a short pause before each
	RowPause time.Duration
	RowLimit time.Duration
	Churn    time.Duration // of 100 changes a second
	Few      bool          // leave out what takes long
	Progress Progress
}

// Maker makes the lab of a proxy.
type Maker func(ctx context.Context, kind proxy.Kind, flags ...string) (*proxy.Proxy, error)

// work is a run.
type work struct {
	Work
	plane   *control.Plane
	report  *result.Report
	have    []*control.Placed
	markers []*control.Placed // Services that answer a probe
	size    int
	slow    map[string]bool // by name: what did not get ready at a smaller size
}

// Run measures each kind at each size.
func (c Work) Run(ctx context.Context, plane *control.Plane, kinds []proxy.Kind, make Maker, report *result.Report) error {
	w := &work{Work: c, plane: plane, report: report, slow: map[string]bool{}}
	for _, w.size = range c.Sizes {
		c.Progress("creating Services with %d endpoints each until there are %s", endpoints, result.Thousands(w.size))
		if err := w.fill(ctx); err != nil {
			return err
		}
		for _, k := range kinds {
			if k.Program == "" || w.slow[k.Name] {
				continue
			}
			if err := w.measure(ctx, k, make); err != nil {
				return fmt.Errorf("%s, %d Services: %w", k.Name, w.size, err)
			}
		}
	}
	return nil
}

// fill creates Services; some of them answer on UDP.
func (w *work) fill(ctx context.Context) (err error) {
	pods := proxy.Many(manyEndpoints)
	w.have, err = fill(ctx, w.plane, w.have, w.size, func(i int) control.Service {
		first := i * endpoints % len(pods)
		return control.Service{Name: fmt.Sprintf("fill-%d", i), Ports: tcp(), Endpoints: pods[first : first+endpoints]}
	})
	if err != nil {
		return err
	}
	const markers = 5 // at each size
	for i := range markers {
		placed, err := w.plane.Create(ctx, control.Service{Name: fmt.Sprintf("marker-%d-%d", w.size, i), Ports: udp(), Endpoints: pods[:endpoints]})
		if err != nil {
			return err
		}
		w.markers = append(w.markers, placed)
	}
	return nil
}

// measure measures a kind at the size there is. What takes too long is noted,
// and the rest is left out.
func (w *work) measure(ctx context.Context, k proxy.Kind, make Maker) (err error) {
	var flags []string
	if most := w.size * endpoints * 2; k.Mode == "ebpf" && most > 262144 { // its default
		flags = append(flags, fmt.Sprintf("--ebpf-max-endpoints=%d", most))
	}
	p, err := make(ctx, k, flags...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.ServeMany(ctx, proxy.Many(manyEndpoints)); err != nil {
		return err
	}
	w.Progress("%s Services, %s: cold start", result.Thousands(w.size), k.Name)
	if err := w.cold(ctx, p); err != nil {
		if errors.Is(err, proxy.ErrSlow) {
			w.slow[k.Name] = true
			w.report.Notes = append(w.report.Notes, fmt.Sprintf("Control plane: %s had not programmed %s Services with %d endpoints each after %s, and is left out at larger numbers.", k.Name, result.Thousands(w.size), endpoints, w.Within))
			return nil
		}
		return err
	}
	steps := []func(context.Context, *proxy.Proxy) error{w.restart}
	if w.size == w.Main {
		steps = append(steps, w.alone, w.row, w.churn)
	}
	if w.size == w.Main && !w.Few {
		steps = append(steps, w.added, w.large, w.ports)
	}
	for _, step := range steps {
		if err := step(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) add(p *proxy.Proxy, what, metric, unit string, sample float64) {
	w.report.Add(result.Series{Key: key(result.ControlPlane, what, metric, p, w.size), Unit: unit}, sample)
}

// cold starts the proxy on an empty node.
func (w *work) cold(ctx context.Context, p *proxy.Proxy) error {
	begin := load.Now()
	if err := p.Start(); err != nil {
		return err
	}
	// What answers tells, whatever the proxy says of itself; it programs all
	// Services at once.
	at, silent := w.probeMarkers(p)
	patience := w.Within - (load.Now() - begin)
	if err := p.Ready(ctx, max(patience, 0)); errors.Is(err, proxy.ErrSlow) {
		w.report.Add(result.Series{Key: key(result.ControlPlane, result.ColdStart, result.Time, p, w.size), Unit: "s", Over: true}, w.Within.Seconds())
		return errors.Join(err, w.memory(p))
	} else if err != nil {
		return err
	}
	if silent != nil {
		return silent
	}
	w.add(p, result.ColdStart, result.Time, "s", (at - begin).Seconds())
	const settle = time.Second // the Services answer a little before the Sync counts as done
	time.Sleep(settle)
	m, err := p.Metrics()
	if err != nil {
		return err
	}
	syncs := m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_sum", `ip_family="IPv4"`)
	if p.Program == proxy.KubeProxy {
		syncs += m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_sum", `ip_family="IPv6"`)
	}
	w.add(p, result.ColdSync, result.Time, "s", syncs)
	return w.memory(p)
}

func (w *work) memory(p *proxy.Proxy) error {
	u, err := p.Usage()
	if err != nil {
		return err
	}
	const mb = 1e6
	w.add(p, result.Memory, result.Resident, "MB", u.RSS/mb)
	w.add(p, result.Memory, "peak", "MB", u.Peak/mb)
	w.add(p, result.Memory, "BPF maps", "MB", u.Maps/mb)
	return nil
}

// probeMarkers tells when the last of the markers answered.
func (w *work) probeMarkers(p *proxy.Proxy) (time.Duration, error) {
	var targets []netip.AddrPort
	for _, m := range w.markers {
		targets = append(targets, m.ClusterIP(4, 0))
	}
	return p.Pod.Probe(load.Probe{Targets: targets, Timeout: w.Within})
}

// restart starts the proxy again while the kernel's state is in place. A Service
// that came meanwhile shows when it has caught up.
func (w *work) restart(ctx context.Context, p *proxy.Proxy) error {
	w.Progress("%s Services, %s: restart", result.Thousands(w.size), p.Name)
	p.Stop()
	s := control.Service{Name: "meanwhile", Ports: udp(), Endpoints: proxy.Many(endpoints)}
	placed, err := w.plane.Create(ctx, s)
	if err != nil {
		return err
	}
	begin := load.Now()
	if err := p.Start(); err != nil {
		return err
	}
	at, err := p.Pod.Probe(load.Probe{Targets: []netip.AddrPort{placed.ClusterIP(4, 0)}, Timeout: w.Within})
	if err != nil {
		return err
	}
	w.add(p, "restart, until a Service that came meanwhile answers", "time", "s", (at - begin).Seconds())
	if err := p.Ready(ctx, w.Within); err != nil {
		return err
	}
	return w.plane.Delete(ctx, s)
}

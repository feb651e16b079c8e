package scale

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/paired"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// starts has proxies start on empty nodes, in rounds. At the size where all is
// measured the first of each kind stays, stopped.
func (w *work) starts(ctx context.Context, smaller int) error {
	w.Progress("%s Services: cold starts", result.Thousands(w.size))
	kinds := w.Kinds
	if w.size == w.Main {
		kinds = slices.Concat(w.Twice, w.Audited)
	}
	var columns []paired.Column
	for i, k := range kinds {
		only := w.size == w.Main && i >= len(w.Twice)
		if k.Program == "" || w.out[k.Name] || w.tooLate(k, smaller) {
			continue
		}
		spent, kept := spending{budget: w.Budget}, false
		columns = append(columns, paired.Column{Name: fmt.Sprintf("%s, %d Services", k.Name, w.size), Slice: func() (paired.Sample, error) {
			if spent.all() || kept && only {
				return nil, nil
			}
			err := spent.on(func() error {
				l, err := w.start(ctx, k, only)
				if err == nil && w.size == w.Main && !kept {
					kept, w.players = true, append(w.players, l)
					return l.Pause()
				}
				if l != nil {
					err = errors.Join(err, l.Close())
				}
				return err
			})
			if errors.Is(err, proxy.ErrSlow) {
				w.Progress("%v", err)
				spent.late, w.out[k.Name], err = true, true, nil
				w.note("%s had not programmed %s Services with %d endpoints each after %s, and is left out from there on.", k.Name, result.Thousands(w.size), endpoints, w.Within)
			}
			return nil, err
		}})
	}
	return paired.Rounds(ctx, w.Rounds, columns, func(int, paired.Sample) {})
}

// tooLate tells whether it would be in vain to wait for a kind with more Services
// than where all is measured, by how long it took there.
func (w *work) tooLate(k proxy.Kind, smaller int) bool {
	if smaller < w.Main || w.cold[k.Name]*time.Duration(w.size)/time.Duration(smaller) < w.Within {
		return false
	}
	w.out[k.Name] = true
	w.note("%s took %s to program %s Services, and is left out at larger numbers.", k.Name, w.cold[k.Name].Round(time.Second), result.Thousands(smaller))
	return true
}

func (w *work) note(format string, args ...any) {
	w.report.Notes = append(w.report.Notes, "Control plane: "+fmt.Sprintf(format, args...))
}

// start starts a proxy in a new lab, and again where it does not stay.
func (w *work) start(ctx context.Context, k proxy.Kind, only bool) (*player, error) {
	var flags []string
	if most := w.size * endpoints * 2; k.Mode == "ebpf" && most > 262144 { // its default
		flags = append(flags, fmt.Sprintf("--ebpf-max-endpoints=%d", most))
	}
	p, err := w.make(ctx, k, flags...)
	if err != nil {
		return nil, err
	}
	l := &player{Proxy: p, only: only}
	if err := p.ServeMany(ctx); err != nil {
		return l, err
	}
	if err := w.coldStart(ctx, p); err != nil {
		return l, err
	}
	if w.size == w.Main {
		return l, nil
	}
	err = w.restart(ctx, l)
	if errors.Is(err, proxy.ErrSlow) {
		w.late(l.Proxy, w.restarts().over)
		err = nil
	}
	return l, err
}

// coldStart starts a proxy on an empty node.
func (w *work) coldStart(ctx context.Context, p *proxy.Proxy) error {
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
	took := at - begin
	if s := w.report.Find(key(result.ControlPlane, result.ColdStart, result.Time, p, w.size)); s == nil || took < w.cold[p.Name] {
		w.cold[p.Name] = took
	}
	w.add(p, result.ColdStart, result.Time, "s", took.Seconds())
	time.Sleep(w.Settle) // the Services answer a little before the Sync counts as done
	return errors.Join(w.stages(p, took), w.memory(p))
}

// stages says what of a cold start is what: by Switchyard's own stamps, and what
// these do not have. kube-proxy tells of its syncs.
func (w *work) stages(p *proxy.Proxy, took time.Duration) error {
	m, err := p.Metrics()
	if err != nil {
		return err
	}
	syncs := m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_sum", `ip_family="IPv4"`)
	if p.Program == proxy.KubeProxy {
		syncs += m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_sum", `ip_family="IPv6"`)
		w.add(p, result.ColdSync, result.Time, "s", syncs)
		return nil
	}
	w.add(p, result.ColdSync, result.Time, "s", syncs)
	left := took.Seconds()
	for _, stage := range []string{"open", "list", "decode", "build", "program"} {
		s := m.Sum("switchyard_start_seconds", `stage="`+stage+`"`)
		left -= s
		w.add(p, result.ColdStart, result.ColdStage(stage), "s", s)
	}
	w.add(p, result.ColdStart, result.ColdStage("exec, and to the first answer"), "s", left)
	return nil
}

// memory says what a proxy takes. What is not in Switchyard's heap is the
// runtime's: its program, stacks, and room that no object has.
func (w *work) memory(p *proxy.Proxy) error {
	u, err := p.Usage()
	if err != nil {
		return err
	}
	const mb = 1e6
	w.add(p, result.Memory, result.Resident, "MB", u.RSS/mb)
	w.add(p, result.Memory, "peak", "MB", u.Peak/mb)
	w.add(p, result.Memory, "BPF maps", "MB", u.Maps/mb)
	if p.Program != proxy.Switchyard {
		return nil
	}
	h, err := p.Heap()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name  string
		bytes float64
	}{{"facts", h.Facts}, {"Snapshot", h.Snapshot}, {"backend", h.Backend}, {"others", h.Others}, {"runtime", u.RSS - h.Sum()}} {
		w.add(p, result.Memory, result.MemoryOf(part.name), "MB", part.bytes/mb)
	}
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

func (w *work) restarts() step {
	return step{what: "restart", rounds: w.Rounds, turn: w.restart, over: result.Series{Key: result.Key{Case: result.Restart, Metric: result.Time}, Unit: "s"}}
}

// restart starts a proxy again while the kernel's state is in place. A Service that
// came meanwhile shows when it has caught up.
func (w *work) restart(ctx context.Context, l *player) error {
	l.Stop()
	s := control.Service{Name: "meanwhile", Ports: udp(), Endpoints: proxy.Many(endpoints)}
	placed, err := w.plane.Create(ctx, s)
	if err != nil {
		return err
	}
	begin := load.Now()
	if err := l.Start(); err != nil {
		return err
	}
	at, err := w.answer(l, placed.ClusterIP(4, 0), 0)
	if err == nil {
		w.add(l.Proxy, result.Restart, result.Time, "s", (at - begin).Seconds())
		err = l.Ready(ctx, w.Within)
	}
	return errors.Join(err, w.plane.Delete(ctx, s))
}

package scale

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

func (w *work) churn() step {
	return step{what: result.Churn(), rounds: 1, turn: w.churned, over: result.Series{Key: result.Key{Case: result.Churn(), Metric: result.Lag + result.P50}, Unit: "ms"}}
}

// churned changes other Services all the time, and one endpoint each second whose
// change is timed.
func (w *work) churned(ctx context.Context, l *player) error {
	before, err := w.counts(l.Proxy)
	if err != nil {
		return err
	}
	others, cancel := context.WithCancel(ctx)
	defer cancel()
	var changing sync.WaitGroup
	var changed int
	var changeErr error
	changing.Go(func() { changed, changeErr = w.changeOthers(others) })
	var lags []time.Duration
	begin := time.Now()
	for time.Since(begin) < w.Churn && err == nil {
		time.Sleep(time.Second)
		var took time.Duration
		if took, err = w.move(ctx, l, w.moving); err == nil {
			lags = append(lags, took)
		}
	}
	took := time.Since(begin)
	cancel()
	changing.Wait()
	if err := errors.Join(err, changeErr); err != nil {
		return err
	}
	after, err := w.counts(l.Proxy)
	if err != nil {
		return err
	}
	what := result.Churn()
	for _, lag := range lags {
		w.add(l.Proxy, what, result.Lag+result.P50, "ms", milliseconds(lag))
	}
	w.add(l.Proxy, what, result.Lag+"most", "ms", milliseconds(slices.Max(lags)))
	w.add(l.Proxy, what, result.ProxyCPU, "% of a core", 100*(after.cpu-before.cpu).Seconds()/took.Seconds())
	w.add(l.Proxy, what, "changes made", "/s", float64(changed)/took.Seconds())
	w.add(l.Proxy, what, result.Syncs, "/s", (after.syncs-before.syncs)/took.Seconds())
	if after.rules > 0 {
		w.add(l.Proxy, what, "rules written", "/s", (after.rules-before.rules)/took.Seconds())
	}
	return nil
}

// counts is what a proxy has done so far.
type counts struct {
	cpu                  time.Duration
	syncs, rules, audits float64
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
		cpu:    u.CPU,
		syncs:  m.Sum("kubeproxy_sync_proxy_rules_duration_seconds_count", `ip_family="IPv4"`),
		rules:  m.Sum("switchyard_iptables_rules_written_total", ""),
		audits: m.Sum("switchyard_drift_checks_total", ""),
	}, nil
}

// changeOthers takes an endpoint from each of 100 Services, gives it back a second
// later, and goes on with the next 100 until ctx ends. It leaves all as it was.
func (w *work) changeOthers(ctx context.Context) (n int, err error) {
	const rate = result.ChurnRate
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for ; ; n++ {
		block := n / rate
		first, at, take := block/2*rate, n%rate, block%2 == 0
		select {
		case <-ctx.Done():
			if take {
				return n, w.giveBack(context.WithoutCancel(ctx), first, at)
			}
			return n, w.giveBack(context.WithoutCancel(ctx), first+at, rate-at)
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

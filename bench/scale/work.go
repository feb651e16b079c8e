package scale

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/paired"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// endpoints of each Service that fills the cluster.
const endpoints = 10

// Work says how the proxies' own work is measured. They watch the same API server,
// each in a lab of its own, and take turns: while it is one's turn, the processes of
// all others are stopped.
type Work struct {
	Rounds   int // the most turns of a proxy in a step
	Sizes    []int
	Main     int           // the size at which all is measured; at the others just starts and memory
	Within   time.Duration // what takes longer did not end
	Budget   time.Duration // a proxy that has taken so long in a step sits out its next rounds; see spending
	Moves    int           // changes of a turn, a short pause before each
	RowPause time.Duration
	Pause    time.Duration // longer than kube-proxy's least time between two syncs
	Settle   time.Duration // from the first answers of a start to what the proxy says of it
	Churn    time.Duration // a turn of many changes a second
	Few      bool          // leave out what takes long
	Kinds    []proxy.Kind  // at sizes where just starts and memory are measured
	Twice    []proxy.Kind  // where all is; one of them stands there twice
	Audited  []proxy.Kind  // of Audited, where one endpoint changes
	Progress Progress
}

// Maker makes the lab of a proxy.
type Maker func(ctx context.Context, kind proxy.Kind, flags ...string) (*proxy.Proxy, error)

// player is a proxy that waits for its turns.
type player struct {
	*proxy.Proxy
	pulse byte // the last one that it followed
	only  bool // it is just there for changes of one endpoint
}

// work is a run.
type work struct {
	Work
	plane   *control.Plane
	make    Maker
	report  *result.Report
	size    int
	have    []*control.Placed
	markers []*control.Placed        // Services that answer a probe
	cold    map[string]time.Duration // by name: how long the fastest cold start took at the last size
	out     map[string]bool          // by name: what did not get ready at this or a smaller size

	players        []*player
	pulse          *pulse
	moving, ported *toggle
	rolling        *rollout
}

// Run measures all proxies at each size.
func (c Work) Run(ctx context.Context, plane *control.Plane, make Maker, report *result.Report) (err error) {
	w := &work{Work: c, plane: plane, make: make, report: report, cold: map[string]time.Duration{}, out: map[string]bool{}}
	defer func() { err = errors.Join(err, w.close()) }()
	smaller := 0
	for _, w.size = range c.Sizes {
		c.Progress("creating Services with %d endpoints each until there are %s", endpoints, result.Thousands(w.size))
		if err := w.fill(ctx); err != nil {
			return err
		}
		if w.size == c.Main {
			if err := w.prepare(ctx); err != nil {
				return err
			}
		}
		if err := w.starts(ctx, smaller); err != nil {
			return err
		}
		if w.size == c.Main {
			if err := errors.Join(w.steps(ctx), w.close()); err != nil {
				return err
			}
		}
		smaller = w.size
	}
	return nil
}

// close ends the proxies that wait for turns.
func (w *work) close() (err error) {
	for _, l := range w.players {
		err = errors.Join(err, l.Close())
	}
	w.players = nil
	return err
}

// fill creates Services; some of them answer on UDP.
func (w *work) fill(ctx context.Context) (err error) {
	const pods = 1000
	all := proxy.Many(pods)
	w.have, err = fill(ctx, w.plane, w.have, w.size, func(i int) control.Service {
		first := i * endpoints % len(all)
		return control.Service{Name: fmt.Sprintf("fill-%d", i), Ports: tcp(), Endpoints: all[first : first+endpoints]}
	})
	if err != nil {
		return err
	}
	const markers = 5 // at each size
	for i := range markers {
		placed, err := w.plane.Create(ctx, control.Service{Name: fmt.Sprintf("marker-%d-%d", w.size, i), Ports: udp(), Endpoints: all[:endpoints]})
		if err != nil {
			return err
		}
		w.markers = append(w.markers, placed)
	}
	return nil
}

// step is something that all proxies do in turns.
type step struct {
	what   string
	rounds int
	turn   func(context.Context, *player) error
	over   result.Series // what is missing where it did not end in time
	all    bool          // those that are just there for that take part
	done   func()        // nil: nothing is left to do
}

func (w *work) steps(ctx context.Context) error {
	all := []step{w.restarts(), w.row(), w.alone(), w.churn(), w.rollingUpdate()}
	if !w.Few {
		all = append(all, w.added(), w.large(), w.ports())
	}
	for _, s := range all {
		if err := w.take(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// take has the proxies take turns.
func (w *work) take(ctx context.Context, s step) error {
	w.Progress("%s Services: %s", result.Thousands(w.size), s.what)
	var columns []paired.Column
	for _, l := range w.players {
		if l.only && !s.all {
			continue
		}
		spent := spending{budget: w.Budget}
		columns = append(columns, paired.Column{Name: l.Name, Slice: func() (paired.Sample, error) {
			if spent.all() {
				return nil, nil
			}
			err := spent.on(func() error { return w.turn(ctx, l, s) })
			if errors.Is(err, proxy.ErrSlow) {
				w.Progress("%s: %v", l.Name, err)
				w.late(l.Proxy, s.over)
				spent.late, err = true, nil
			}
			return nil, err
		}})
	}
	if err := paired.Rounds(ctx, s.rounds, columns, func(int, paired.Sample) {}); err != nil {
		return fmt.Errorf("%s: %w", s.what, err)
	}
	if s.done != nil {
		s.done()
	}
	return nil
}

// spending is what a proxy has taken of its time.
type spending struct {
	budget, took time.Duration
	turns        int
	late         bool
}

// all tells whether nothing is left. Short turns go on until there are enough for
// an interval of confidence.
func (s *spending) all() bool {
	const enough, short = 6, 3
	if s.turns > 0 && s.turns < enough && s.took/time.Duration(s.turns) < s.budget/short {
		return s.late
	}
	return s.late || s.took >= s.budget
}

// on takes a turn.
func (s *spending) on(turn func() error) error {
	begin := time.Now()
	err := turn()
	s.took += time.Since(begin)
	s.turns++
	return err
}

// late adds that a proxy did not end in time.
func (w *work) late(p *proxy.Proxy, s result.Series) {
	s.Key, s.Over = key(result.ControlPlane, s.Case, s.Metric, p, w.size), true
	within := w.Within.Seconds()
	if s.Unit == "ms" {
		within = milliseconds(w.Within)
	}
	w.report.Add(s, within)
}

// turn lets one proxy work. It catches up first with what changed while it was
// stopped.
func (w *work) turn(ctx context.Context, l *player, s step) (err error) {
	if err := l.Resume(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Pause()) }()
	if _, err := w.beat(ctx, l, func() error { return nil }); err != nil {
		return fmt.Errorf("catching up: %w", err)
	}
	return s.turn(ctx, l)
}

func (w *work) add(p *proxy.Proxy, what, metric, unit string, sample float64) {
	w.report.Add(result.Series{Key: key(result.ControlPlane, what, metric, p, w.size), Unit: unit}, sample)
}

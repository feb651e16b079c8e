package scale

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// answer waits for an answer by a server (0: any) and tells when it came.
func (w *work) answer(l *player, to netip.AddrPort, want byte) (time.Duration, error) {
	begin := load.Now()
	at, err := l.Pod.Probe(load.Probe{Targets: []netip.AddrPort{to}, Want: want, Timeout: w.Within})
	if err != nil && load.Now()-begin >= w.Within {
		err = errors.Join(proxy.ErrSlow, err)
	}
	return at, err
}

// change makes a change, and tells how long it took until a server answered.
func (w *work) change(l *player, to netip.AddrPort, want byte, do func() error) (time.Duration, error) {
	// Or a new socket whose port an earlier one had would go where that one went.
	if err := l.ForgetFlows(); err != nil {
		return 0, err
	}
	begin := load.Now()
	var at time.Duration
	probed := make(chan error, 1)
	go func() {
		var err error
		at, err = w.answer(l, to, want)
		probed <- err
	}()
	err := errors.Join(do(), <-probed)
	return at - begin, err
}

// pulse is a Service whose endpoint moves on with each beat. Each answers with an
// id of its own, so that no older state looks like the newest.
type pulse struct {
	*control.Placed
	id byte
}

// The ids of the endpoints of a pulse; those of rollouts follow.
const (
	firstPulse = proxy.FirstBlock
	lastPulse  = 219
)

func newPulse(ctx context.Context, plane *control.Plane) (*pulse, error) {
	placed, err := plane.Create(ctx, control.Service{Name: "pulse", Ports: udp(), Endpoints: proxy.Block(firstPulse, 1)})
	return &pulse{placed, firstPulse}, err
}

// next is an id that l did not see last.
func (p *pulse) next(l *player) byte {
	for {
		if p.id++; p.id > lastPulse {
			p.id = firstPulse
		}
		if p.id != l.pulse {
			return p.id
		}
	}
}

// beat makes a change, and tells how long it took until l has followed another one
// that was made after it.
func (w *work) beat(ctx context.Context, l *player, do func() error) (time.Duration, error) {
	id := w.pulse.next(l)
	s := w.pulse.Service
	s.Endpoints = proxy.Block(id, 1)
	took, err := w.change(l, w.pulse.ClusterIP(4, 0), id, func() error {
		return errors.Join(do(), w.plane.SetEndpoints(ctx, s))
	})
	if err == nil {
		l.pulse = id
	}
	return took, err
}

// toggle is a Service whose one endpoint moves from node to node.
type toggle struct {
	*control.Placed
	local bool
}

func newToggle(ctx context.Context, plane *control.Plane, name string, ports []control.Port, first control.Endpoint) (*toggle, error) {
	placed, err := plane.Create(ctx, control.Service{Name: name, Ports: ports, Endpoints: []control.Endpoint{first}})
	return &toggle{placed, true}, err
}

// move moves the endpoint and tells how long it took until the last port of the
// Service led there.
func (w *work) move(ctx context.Context, l *player, t *toggle) (time.Duration, error) {
	t.local = !t.local
	here, there := l.Endpoints()
	want, s := proxy.RemoteID, t.Service
	s.Endpoints = []control.Endpoint{there}
	if t.local {
		want, s.Endpoints = proxy.LocalID, []control.Endpoint{here}
	}
	return w.change(l, t.ClusterIP(4, len(t.Ports)-1), want, func() error { return w.plane.SetEndpoints(ctx, s) })
}

// alone changes an endpoint after a pause, so that no proxy is held up by what it
// did before.
func (w *work) alone() step { return w.moves(1, w.Pause) }

// row changes an endpoint soon after the change before is in force.
func (w *work) row() step { return w.moves(w.Moves, w.RowPause) }

// moves changes an endpoint n times in a turn.
func (w *work) moves(n int, pause time.Duration) step {
	what := result.EndpointChanged(pause)
	all := map[*player]*hdrhistogram.Histogram{}
	turn := func(ctx context.Context, l *player) error {
		if all[l] == nil {
			all[l] = load.NewHistogram()
		}
		before, err := w.counts(l.Proxy)
		if err != nil {
			return err
		}
		h := load.NewHistogram()
		for begin := time.Now(); h.TotalCount() < int64(n) && (h.TotalCount() == 0 || time.Since(begin) < w.Budget); {
			time.Sleep(pause)
			took, err := w.move(ctx, l, w.moving)
			if err != nil {
				return err
			}
			_ = h.RecordValue(int64(took)) // within its bounds
		}
		all[l].Merge(h)
		w.add(l.Proxy, what, result.P50, "ms", float64(h.ValueAtPercentile(50))/1e6)
		after, err := w.counts(l.Proxy)
		if err == nil && l.Program == proxy.Switchyard {
			w.add(l.Proxy, what, result.Audits, "a turn", after.audits-before.audits)
		}
		return err
	}
	done := func() {
		for _, l := range w.players {
			if h := all[l]; h != nil && h.TotalCount() > 0 {
				w.add(l.Proxy, what, result.P99, "ms", float64(h.ValueAtPercentile(99))/1e6)
				w.add(l.Proxy, what, result.Changes, "", float64(h.TotalCount()))
			}
		}
		w.pair(what)
	}
	return step{what: what, rounds: w.Rounds, turn: turn, done: done, all: true, over: result.Series{Key: result.Key{Case: what, Metric: result.P50}, Unit: "ms"}}
}

// Audited is the kind twice: with as many comparisons of the kernel with what is
// wanted as there may be, and without any.
func Audited(k proxy.Kind) []proxy.Kind {
	return []proxy.Kind{k.With("verify-interval=1s"), k.With("verify-interval=24h")}
}

// pair adds what such comparisons cost a change: what both kinds differed by in the
// same rounds.
func (w *work) pair(what string) {
	if len(w.Audited) == 0 {
		return
	}
	row := result.Key{Part: result.ControlPlane, Case: what, Metric: result.P50, Services: w.size}
	with, without := w.report.Of(row, w.Audited[0].Name), w.report.Of(row, w.Audited[1].Name)
	if with == nil || without == nil {
		return
	}
	const percent = 100
	row.Metric, row.Proxy = result.AuditCost, w.Audited[0].Name
	for n := range min(len(with.Samples), len(without.Samples)) {
		w.report.Add(result.Series{Key: row, Unit: "%"}, percent*(with.Samples[n]/without.Samples[n]-1))
	}
}

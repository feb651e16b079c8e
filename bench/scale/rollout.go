package scale

import (
	"context"
	"errors"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// A rolling update of so many pods, a tenth at a time.
const (
	waves     = 10
	wavePods  = control.SliceEndpoints
	wavePause = 100 * time.Millisecond
)

// rollout is a Service whose pods are replaced. There are two generations of them,
// and each wave of a generation has an id that its servers answer with.
type rollout struct {
	*control.Placed
	generation byte
}

// wave is the id of a wave of the generation that is there, or of the other one.
func (r *rollout) wave(n int, other bool) byte {
	g := r.generation
	if other {
		g = 1 - g
	}
	return lastPulse + 1 + g*waves + byte(n)
}

func newRollout(ctx context.Context, plane *control.Plane) (*rollout, error) {
	r := &rollout{}
	s := control.Service{Name: "rolling", Ports: udp()}
	for n := range waves {
		s.Endpoints = append(s.Endpoints, proxy.Block(r.wave(n, false), wavePods)...)
	}
	var err error
	r.Placed, err = plane.Create(ctx, s)
	return r, err
}

func (w *work) rollingUpdate() step {
	return step{what: result.Rolling, rounds: w.Rounds, turn: w.rolled, over: result.Series{Key: result.Key{Case: result.Rolling, Metric: result.NoneOld}, Unit: "ms"}}
}

// rolled replaces all pods, an EndpointSlice at a time, and watches new flows while
// the last ones are replaced.
func (w *work) rolled(ctx context.Context, l *player) error {
	before, err := w.counts(l.Proxy)
	if err != nil {
		return err
	}
	r := w.rolling
	watched := load.Turnover{Target: r.ClusterIP(4, 0), New: r.wave(waves-1, true), Timeout: w.Within}
	for n := range waves {
		watched.Old = append(watched.Old, r.wave(n, false))
		copy(r.Endpoints[n*wavePods:], proxy.Block(r.wave(n, true), wavePods))
	}
	r.generation = 1 - r.generation
	for n := range waves - 1 {
		if err := w.plane.SetSlice(ctx, r.Service, n); err != nil {
			return err
		}
		time.Sleep(wavePause)
	}
	begin, at, err := w.lastWave(ctx, l, watched)
	if err != nil {
		return err
	}
	// Those that delete what conntrack has of old pods may still be at it.
	if _, err := w.beat(ctx, l, func() error { return nil }); err != nil {
		return err
	}
	after, err := w.counts(l.Proxy)
	if err != nil {
		return err
	}
	w.add(l.Proxy, result.Rolling, result.NoneOld, "ms", milliseconds(max(at.Old-begin, 0)))
	w.add(l.Proxy, result.Rolling, result.NewAnswers, "ms", milliseconds(at.New-begin))
	w.add(l.Proxy, result.Rolling, result.ProxyCPU, "ms", milliseconds(after.cpu-before.cpu))
	w.add(l.Proxy, result.Rolling, result.Syncs, "", after.syncs-before.syncs)
	return nil
}

// lastWave replaces the last pods while somebody asks, and tells when it began.
func (w *work) lastWave(ctx context.Context, l *player, watched load.Turnover) (begin time.Duration, at load.TurnedOver, err error) {
	if err := l.ForgetFlows(); err != nil {
		return 0, at, err
	}
	begin = load.Now()
	probed := make(chan error, 1)
	go func() {
		var err error
		at, err = l.Pod.Turnover(watched)
		probed <- err
	}()
	err = errors.Join(w.plane.SetSlice(ctx, w.rolling.Service, waves-1), <-probed)
	if err != nil && load.Now()-begin >= w.Within {
		err = errors.Join(proxy.ErrSlow, err)
	}
	return begin, at, err
}

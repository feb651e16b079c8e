package scale

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

const (
	manyEndpoints = 5000 // of the largest Service
	manyPorts     = 400  // of the Service with the most
)

// prepare creates the Services that change in turns.
func (w *work) prepare(ctx context.Context) (err error) {
	if w.pulse, err = newPulse(ctx, w.plane); err != nil {
		return err
	}
	remote := proxy.Block(firstPulse, 1)[0] // no turn begins there
	if w.moving, err = newToggle(ctx, w.plane, "moving", udp(), remote); err != nil {
		return err
	}
	if w.rolling, err = newRollout(ctx, w.plane); err != nil || w.Few {
		return err
	}
	w.ported, err = newToggle(ctx, w.plane, "ports-moving", portsOf(manyPorts), remote)
	return err
}

// added creates Services one at a time.
func (w *work) added() step {
	const what = result.ServiceAdded
	turn := func(ctx context.Context, l *player) error {
		return w.appear(ctx, l, what, result.Each, control.Service{Name: "added", Ports: udp(), Endpoints: proxy.Many(endpoints)}, nil)
	}
	return step{what: what, rounds: w.Rounds, turn: turn, over: result.Series{Key: result.Key{Case: what, Metric: result.Each}, Unit: "ms"}}
}

// large creates a Service with many endpoints, and replaces one of them.
func (w *work) large() step {
	what := fmt.Sprintf("a Service of %s endpoints", result.Thousands(manyEndpoints))
	const created, changed = "created, until it answers", "one endpoint changed, until that is in force"
	turn := func(ctx context.Context, l *player) error {
		s := control.Service{Name: "large", Ports: udp(), Endpoints: proxy.Many(manyEndpoints)}
		return w.appear(ctx, l, what, created, s, func() error {
			time.Sleep(w.Pause)
			other := s
			other.Endpoints = slices.Clone(s.Endpoints)
			other.Endpoints[0] = proxy.Many(manyEndpoints + 1)[manyEndpoints]
			took, err := w.beat(ctx, l, func() error { return w.plane.SetSlice(ctx, other, 0) })
			if err == nil {
				w.add(l.Proxy, what, changed, "ms", milliseconds(took))
			}
			return err
		})
	}
	return step{what: what, rounds: w.Rounds, turn: turn, over: result.Series{Key: result.Key{Case: what, Metric: created}, Unit: "ms"}}
}

// ports creates a Service with many ports, and moves the endpoint of one that is
// there.
func (w *work) ports() step {
	what := fmt.Sprintf("a Service of %d ports", manyPorts)
	const moved = "its one endpoint changed, until the last port leads there"
	turn := func(ctx context.Context, l *player) error {
		s := control.Service{Name: "ports", Ports: portsOf(manyPorts), Endpoints: proxy.Many(endpoints)}
		if err := w.appear(ctx, l, what, fmt.Sprintf("created with %d endpoints, until the last port answers", endpoints), s, nil); err != nil {
			return err
		}
		time.Sleep(w.Pause)
		took, err := w.move(ctx, l, w.ported)
		if err == nil {
			w.add(l.Proxy, what, moved, "ms", milliseconds(took))
		}
		return err
	}
	return step{what: what, rounds: w.Rounds, turn: turn, over: result.Series{Key: result.Key{Case: what, Metric: moved}, Unit: "ms"}}
}

func portsOf(n int32) []control.Port {
	var all []control.Port
	for i := range n {
		all = append(all, control.Port{Protocol: corev1.ProtocolUDP, Port: 1000 + i, Target: load.EchoPort})
	}
	return all
}

// appear creates a Service, waits for the last of its ports, does something with it
// (nil: nothing), and deletes it.
func (w *work) appear(ctx context.Context, l *player, what, metric string, s control.Service, do func() error) error {
	time.Sleep(w.Pause)
	begin := load.Now()
	placed, err := w.plane.Create(ctx, s)
	if err != nil {
		return err
	}
	at, err := w.answer(l, placed.ClusterIP(4, len(s.Ports)-1), 0)
	if err == nil {
		w.add(l.Proxy, what, metric, "ms", milliseconds(at-begin))
		if do != nil {
			err = do()
		}
	}
	return errors.Join(err, w.plane.Delete(ctx, s))
}

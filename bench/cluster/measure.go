package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	look      = 20 * time.Millisecond
	settle    = 2 * time.Second // before a window of changes
	syncTime  = 2 * time.Minute // most that all proxies may take until they have synced
	quietTime = 2 * time.Second // without much that is sent, after which a storm is over
	// backOff is quietTime after a restart, and for those who do not say what they have
	// synced: a watch may be waiting to try again.
	backOff = 15 * time.Second
	// idleBytes and idleBytesEach are no storm, in quietTime: keepalives, bookmarks.
	idleBytes, idleBytesEach = 20_000, 200
)

// spent is what the API server and the proxies took of the machine.
type spent struct {
	control.Cost
	proxies control.Process
}

// cost reads what all of them took so far.
func (r *run) cost(f fleet) (s spent, err error) {
	if s.Cost, err = r.plane.Cost(); err != nil {
		return s, err
	}
	s.proxies, err = f.used()
	return s, err
}

// window measures so many changes a second.
func (r *run) window(ctx context.Context, kind string, n int, rate float64, f fleet) error {
	r.Progress("%s: %g changes a second", name(kind, n), rate)
	time.Sleep(settle)
	if _, err := f.take(); err != nil {
		return err
	}
	before, err := r.cost(f)
	if err != nil {
		return err
	}
	begin := time.Now()
	made, err := r.changes(ctx, rate)
	if err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	after, err := r.cost(f)
	if err != nil {
		return err
	}
	w := Window{
		Kind: kind, Agents: n, Asked: rate, Changes: float64(made) / took,
		CPU:        (after.CPU - before.CPU).Seconds() / took,
		Sent:       float64(after.Sent-before.Sent) / took,
		Received:   float64(after.Received-before.Received) / took,
		ProxiesCPU: (after.proxies.CPU - before.proxies.CPU).Seconds() / took, ProxiesResident: after.proxies.Resident,
	}
	times, err := f.take()
	if err != nil {
		return err
	}
	if times != nil && made > 0 && n > 0 {
		w.Lag = &Lag{
			P50: milliseconds(times.ValueAtPercentile(50)), P99: milliseconds(times.ValueAtPercentile(99)), Most: milliseconds(times.Max()),
			Missing: made*n - int(times.TotalCount()),
		}
	}
	r.Progress("  %.1f changes/s made, %.3f cores, %.3f MB/s", w.Changes, w.CPU, w.Sent/mega)
	r.report.Windows = append(r.report.Windows, w)
	return nil
}

func milliseconds(ns int64) float64 { return float64(ns) / float64(time.Millisecond) }

// changes makes so many changes a second for a while, and tells how many it made.
func (r *run) changes(ctx context.Context, rate float64) (made int, err error) {
	end := time.Now().Add(r.For)
	if rate > 0 {
		tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer tick.Stop()
		const last = 500 * time.Millisecond // for all proxies to take the last one up
		for time.Now().Before(end.Add(-last)) {
			select {
			case <-ctx.Done():
				return made, context.Cause(ctx)
			case <-tick.C:
			}
			if err := r.change(ctx); err != nil {
				return made, err
			}
			made++
		}
	}
	select {
	case <-ctx.Done():
		return made, context.Cause(ctx)
	case <-time.After(time.Until(end)):
	}
	return made, nil
}

// storm measures what comes of something that makes all proxies ask for everything at
// once. Its begin returns the proxies, and the time of a change that all have to sync.
func (r *run) storm(ctx context.Context, s Storm, begin func() (fleet, time.Time, error)) (fleet, error) {
	before, err := r.plane.Cost()
	if err != nil {
		return nil, err
	}
	if s.What == Restart {
		before.CPU = 0 // it is another process afterwards
	}
	started := time.Now()
	f, since, err := begin()
	if err != nil {
		return f, err
	}
	if s.What == Restart {
		s.Down = since.Sub(started).Seconds()
	}
	took, err := r.allSynced(ctx, s.Agents, f, since)
	if err != nil {
		return f, err
	}
	if s.Kind != KubeProxy {
		s.Synced = took.Seconds()
	}
	if err := r.quiet(ctx, s); err != nil {
		return f, err
	}
	after, err := r.cost(f)
	if err != nil {
		return f, err
	}
	s.CPU = (after.CPU - before.CPU).Seconds()
	s.Sent, s.Received = float64(after.Sent-before.Sent), float64(after.Received-before.Received)
	s.Peak, s.ProxiesPeak = after.Peak, after.proxies.Peak
	r.Progress("  %.2f s of CPU, %.2f MB", s.CPU, s.Sent/mega)
	r.report.Storms = append(r.report.Storms, s)
	return f, nil
}

// allSynced waits until all proxies have synced a change, and tells how long it took.
func (r *run) allSynced(ctx context.Context, n int, f fleet, since time.Time) (time.Duration, error) {
	begin := time.Now()
	for {
		synced, err := f.synced(since)
		if err != nil || synced == n {
			return time.Since(begin), err
		}
		if time.Since(begin) > netlab.Patient(syncTime) {
			return 0, fmt.Errorf("%d of %d proxies have synced after %s", synced, n, netlab.Patient(syncTime))
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

// quiet waits until the API server sends little.
func (r *run) quiet(ctx context.Context, s Storm) error {
	window := quietTime
	if s.Kind == KubeProxy || s.What == Restart {
		window = backOff
	}
	idle := uint64(idleBytes+idleBytesEach*s.Agents) * uint64(window/quietTime)
	var last uint64
	for begin := time.Now(); ; {
		c, err := r.plane.Cost()
		if err != nil {
			return err
		}
		if last != 0 && c.Sent-last < idle {
			return nil
		}
		if time.Since(begin) > netlab.Patient(syncTime) {
			return errors.New("the API server does not stop sending")
		}
		last = c.Sent
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(window):
		}
	}
}

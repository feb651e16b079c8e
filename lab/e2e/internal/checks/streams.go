package checks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// stream is a target and where its requests come from.
type stream struct {
	from load.Place
	to   load.Target
}

// exchange sends streams that end by themselves and gives their reports.
func exchange(ctx context.Context, streams []stream) ([]load.Report, error) {
	return during(ctx, streams, nil)
}

// during runs streams while do runs, and for a moment before and after it.
// Where do is nil the streams have to end by themselves.
func during(ctx context.Context, streams []stream, do func(context.Context) error) ([]load.Report, error) {
	clients, err := start(streams)
	stop := func() {
		for _, c := range clients {
			c.Stop()
		}
	}
	defer context.AfterFunc(ctx, stop)() // a cancelled check stops its clients
	if err == nil && do != nil {
		const around = 2 * time.Second
		pause(ctx, around)
		if err = do(ctx); err == nil {
			pause(ctx, around)
		}
	}
	if err != nil || do != nil {
		stop()
	}
	var reports []load.Report
	for _, c := range clients {
		r, waitErr := c.Wait()
		reports, err = append(reports, r...), errors.Join(err, waitErr)
	}
	return reports, errors.Join(err, ctx.Err())
}

// start runs one client per place. It gives those that it started also when one
// failed to.
func start(streams []stream) ([]*load.Client, error) {
	targets := map[string][]load.Target{} // by the place's namespace
	var places []load.Place
	for _, s := range streams {
		if targets[s.from.Namespace] == nil {
			places = append(places, s.from)
		}
		targets[s.from.Namespace] = append(targets[s.from.Namespace], s.to)
	}
	var clients []*load.Client
	for _, p := range places {
		c, err := load.Start(p, targets[p.Namespace])
		if err != nil {
			return clients, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// servers is who answered in any of reports, sorted.
func servers(reports ...load.Report) []string {
	all := map[string]bool{}
	for _, r := range reports {
		for server := range r.Answers {
			all[server] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func failed(reports []load.Report) bool {
	return slices.ContainsFunc(reports, func(r load.Report) bool { return r.Failed > 0 })
}

// answered wants answers in reports from exactly the servers of want.
func answered(want []string, reports ...load.Report) error {
	got := servers(reports...)
	want = slices.Sorted(slices.Values(want))
	if slices.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("answers came from %s, want them from %s", list(got), list(want))
}

func list(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// Package takeover ends what served the node before, once the backend that runs is in force.
//
// New connections are the new backend's from then on. Those under way were
// translated by the kernel's NAT, which goes on with them as long as something
// keeps its hooks, or by a backend's own table, which is emptied before the
// backend goes.
package takeover

import (
	"context"
	"log/slog"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
)

const (
	// firstRetry and lastRetry are the pauses after something could not be removed.
	firstRetry = 2 * time.Second
	lastRetry  = 5 * time.Minute
	// look is how often connections under way are counted, at first.
	look = 10 * time.Second
	// MostDrain is how long connections may go on that only the old backend can serve.
	MostDrain = 15 * time.Minute
)

// Old is what may have served the node before.
type Old struct {
	Name string
	// Remove removes what is there of it, and is no error where nothing is.
	Remove func(context.Context) error
	// Drain, if it is set, stops it from accepting new connections and returns once
	// the existing ones have ended.
	Drain func(context.Context) error
}

// Run ends all of old, one after the other, and returns when no connection needs
// anything of it any more. Call it when the backend that runs is in force.
func Run(ctx context.Context, log *slog.Logger, families []dataplane.Family, old []Old) {
	held := Hold(families)
	if held != nil {
		log.Warn("connections that another proxy began may break, as the kernel's NAT cannot be kept", "error", held)
	}
	for _, o := range old {
		if o.Drain != nil {
			if err := o.Drain(ctx); err != nil && ctx.Err() == nil {
				log.Warn("the connections of what served this node before are not waited for", "was", o.Name, "error", err)
			}
		}
		remove(ctx, log, o)
	}
	if held == nil {
		waitForNAT(ctx, log, families)
	}
}

// remove tries until it is done.
func remove(ctx context.Context, log *slog.Logger, o Old) {
	for pause := firstRetry; ctx.Err() == nil; pause = min(2*pause, lastRetry) {
		err := o.Remove(ctx)
		if err == nil {
			return
		}
		log.Warn("what served this node before cannot be removed yet", "was", o.Name, "error", err, "retry", pause)
		wait(ctx, pause)
	}
}

// waitForNAT lets the kernel's NAT go when no connection needs it. To count
// takes a dump of the whole table, so it looks less and less often: beside the
// iptables backend there may always be one.
func waitForNAT(ctx context.Context, log *slog.Logger, families []dataplane.Family) {
	for pause := look; ctx.Err() == nil; pause = min(2*pause, lastRetry) {
		count, err := translated(ctx, families)
		if err == nil && count == 0 {
			if err = Release(families); err == nil {
				return
			}
		}
		if err != nil && ctx.Err() == nil {
			pause = lastRetry
			log.Warn("the kernel's NAT is kept for older connections", "error", err, "retry", pause)
		}
		wait(ctx, pause)
	}
}

func translated(ctx context.Context, families []dataplane.Family) (count int, err error) {
	for _, f := range families {
		if err := conntrack.Flows(ctx, f, func(dataplane.Flow) { count++ }); err != nil {
			return count, err
		}
	}
	return count, nil
}

// Drain returns a Driver's Drain, which ends without an error after at most that long.
// Nil means that there is nothing to drain.
func Drain(driver dataplane.Driver, cfg dataplane.Config, most time.Duration) func(context.Context) error {
	if driver.Drain == nil {
		return nil
	}
	return func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		err := driver.Drain(limited, cfg)
		if limited.Err() != nil && ctx.Err() == nil {
			cfg.Log.Info("what is left of connections ends: they had the time to", "of", driver.Name, "time", most)
			return nil
		}
		return err
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

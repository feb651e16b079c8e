// Package takeover ends what served the node before, once the backend that runs is in force.
//
// New connections are the new backend's from then on. Those under way were
// translated by the kernel's NAT, which goes on with them as long as something
// keeps its hooks, or by a backend's own table, which is emptied before the
// backend goes.
package takeover

import (
	"context"
	"fmt"
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
	// lookRetired is how often those of a backend are that serves nothing new.
	lookRetired = 2 * time.Second
	// MostDrain is how long connections may go on that only the old backend can serve.
	MostDrain = 15 * time.Minute
)

// Old is what may have served the node before.
type Old struct {
	Name string
	// Remove removes what is there of it, and is no error where nothing is.
	Remove func(context.Context) error
	// Retire, if it is set, has it take no new connections, and returns when those
	// that it has are over.
	Retire func(context.Context) error
}

// Run ends all of old, one after the other, and returns when no connection needs
// anything of it any more. Call it when the backend that runs is in force.
func Run(ctx context.Context, log *slog.Logger, families []dataplane.Family, old []Old) {
	held := hold(families)
	if held != nil {
		log.Warn("connections that another proxy began may break, as the kernel's NAT cannot be kept", "error", held)
	}
	for _, o := range old {
		if o.Retire != nil {
			if err := o.Retire(ctx); err != nil && ctx.Err() == nil {
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

// Retire is the Retire of a backend with a table of connections of its own: it
// is opened once more, serves nothing, and goes on with what is in the table, for
// at most as long as is said.
func Retire(driver dataplane.Driver, cfg dataplane.Config, node func() *dataplane.Node, most time.Duration) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		backend, err := driver.Open(ctx, cfg)
		if err != nil {
			return fmt.Errorf("opening backend %s once more: %w", driver.Name, err)
		}
		defer func() {
			if e := backend.Close(); err == nil && e != nil {
				err = fmt.Errorf("closing backend %s: %w", driver.Name, e)
			}
		}()
		if err := backend.Sync(ctx, nil, &dataplane.Snapshot{Revision: 1, Node: node()}); err != nil {
			return fmt.Errorf("taking the Services from backend %s: %w", driver.Name, err)
		}
		table, ok := backend.(interface {
			Flows(visit func(dataplane.Flow)) error
		})
		if !ok {
			return nil
		}
		cfg.Log.Info("waiting for the connections of what served this node before", "was", driver.Name, "most", most)
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		for ctx.Err() == nil {
			count := 0
			if err := table.Flows(func(dataplane.Flow) { count++ }); err != nil || count == 0 {
				return err
			}
			wait(ctx, lookRetired)
		}
		return nil
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

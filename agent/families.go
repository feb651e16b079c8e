package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// How long the agent waits before it looks whether an address family that could
// not be programmed at the start can be by now.
const (
	familyFirst = 10 * time.Second
	familyMost  = 5 * time.Minute
)

// errFamiliesWork ends the parts of an agent that serves some address families,
// so that they start again for all.
var errFamiliesWork = errors.New("all address families can be programmed now")

// startsAgain reports whether an error ends the parts just for them to start again.
func startsAgain(err error) bool {
	return errors.As(err, new(*unfitError)) || errors.Is(err, errFamiliesWork)
}

// missing returns the address families that the backend cannot program here.
func (a *Agent) missing() []dataplane.Family {
	return slices.DeleteFunc(slices.Clone(a.asked), func(f dataplane.Family) bool { return slices.Contains(a.families, f) })
}

// awaitFamilies ends the parts once the backend works for all address families. What
// kept one from being programmed at the start may have been a matter of a moment:
// a lock that was held, a module that was loaded later.
func (a *Agent) awaitFamilies(ctx context.Context) error {
	if len(a.missing()) == 0 {
		return nil
	}
	cfg := a.config.Dataplane(slog.New(slog.DiscardHandler), a.asked)
	for pause := familyFirst; ; pause = min(2*pause, familyMost) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		err := a.choice.Works(ctx, cfg)
		if err == nil {
			a.log.Info("an address family can be programmed now; starting all parts again", "families", a.missing())
			return errFamiliesWork
		}
		a.log.Debug("an address family still cannot be programmed", "families", a.missing(), "error", err)
	}
}

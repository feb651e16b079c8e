package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

// lookForLeftovers is how often the agent looks for what others left.
const lookForLeftovers = 5 * time.Minute

// kubeProxy finds and removes what a kube-proxy left.
func kubeProxy() takeover.KubeProxy {
	return takeover.KubeProxy{FindChains: catalog.FindChains, RemoveChains: catalog.RemoveChains}
}

// leftovers are what is in the kernel of backends that do not run, and of a
// kube-proxy: it is in force beside what the agent programs, and grows old.
type leftovers struct {
	found atomic.Pointer[map[string][]string] // in plain words, by whose they are
	again chan struct{}                       // one slot: look now
}

// get returns what was found last.
func (l *leftovers) get() map[string][]string {
	if found := l.found.Load(); found != nil {
		return *found
	}
	return nil
}

// lookAgain has the agent look before its time.
func (l *leftovers) lookAgain() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// watchLeftovers looks for leftovers once all Services are forwarded, and again
// every now and then.
func (a *Agent) watchLeftovers(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.forwarding:
	}
	for {
		a.findLeftovers(ctx)
		select {
		case <-ctx.Done():
			return
		case <-a.leftovers.again:
		case <-time.After(lookForLeftovers):
		}
	}
}

// findLeftovers looks once, and logs what is news.
func (a *Agent) findLeftovers(ctx context.Context) {
	found := map[string][]string{}
	note := func(whose string, what []string, err error) {
		if err != nil && ctx.Err() == nil {
			a.log.Debug("cannot look for what is left in the kernel", "of", whose, "error", err)
		}
		if len(what) > 0 {
			found[whose] = what
		}
	}
	for _, d := range a.backends.Layers(a.config.Backends()) {
		if d.Find != nil && !slices.Contains(a.choice.Layers, d.Name) {
			what, err := d.Find(ctx)
			note(d.Name, what, err)
		}
	}
	what, err := kubeProxy().Find(ctx)
	note("kube-proxy", what, err)
	before := a.leftovers.get()
	a.leftovers.found.Store(&found)
	for whose, what := range found {
		if !slices.Equal(before[whose], what) && !a.config.Switchyard.TakeOver {
			a.log.Warn("rules that nobody updates are in force beside ours; --take-over or a cleanup removes them", "of", whose, "found", what)
		}
	}
}

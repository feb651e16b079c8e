package agent

import (
	"time"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

// contacted is a source of objects that knows when it last answered, by resource.
type contacted interface {
	Contact() []kube.Contact
}

// contacts returns how the source last answered; nil: nobody asks one. What the
// API server need not have, and never had, is left out.
func (a *Agent) contacts() func() []inspect.Contact {
	source, ok := a.source.(contacted)
	if !ok {
		return nil
	}
	return func() []inspect.Contact {
		var out []inspect.Contact
		for _, c := range source.Contact() {
			if c.Optional && c.Last.IsZero() {
				continue
			}
			contact := inspect.Contact{Resource: c.Resource, Last: c.Last}
			if c.Err != nil {
				contact.Error = c.Err.Error()
			}
			out = append(out, contact)
		}
		return out
	}
}

// countContacts makes the metric of them.
func (a *Agent) countContacts() {
	contacts := a.contacts()
	if contacts == nil {
		return
	}
	a.metrics.CountContacts(func() map[string]time.Time {
		last := map[string]time.Time{}
		for _, c := range contacts() {
			last[c.Resource] = c.Last
		}
		return last
	})
}

// listed is a source of objects that knows how its first lists went.
type listed interface {
	Listings() []kube.Listing
}

// countStart makes the metric of the stages of the start, if there is an API
// server. The list that ended last is the one that the others waited for.
func (a *Agent) countStart() {
	source, ok := a.source.(listed)
	if !ok {
		return
	}
	a.metrics.CountStart(a.started, func() (end time.Time, waited time.Duration) {
		for _, l := range source.Listings() {
			if l.Ended.IsZero() {
				return time.Time{}, 0
			}
			if l.Ended.After(end) {
				end, waited = l.Ended, l.Waited
			}
		}
		return end, waited
	})
}

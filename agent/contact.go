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

package main

import (
	"time"

	"github.com/switchyard-io/switchyard/inspect"
)

// contacted is a source of objects that knows when it last answered, by resource.
type contacted interface {
	Contacts() []inspect.Contact
}

// contacts returns how the source last answered; nil: nobody asks one.
func (a *agent) contacts() func() []inspect.Contact {
	if s, ok := a.source.(contacted); ok {
		return s.Contacts
	}
	return nil
}

// countContacts makes the metric of them.
func (a *agent) countContacts() {
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

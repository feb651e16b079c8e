package dataplane

import (
	"log/slog"
	"slices"
	"time"
)

// refusals are the ServicePorts that the Backend could not program. They wait
// for one next try together, because each try may cost as much as all.
type refusals struct {
	ports  map[PortID]refusal
	tries  int         // of all of them, in a row
	last   time.Time   // the last try
	again  time.Time   // the next try is not before
	now    bool        // the Sync that goes on is that try, or the first one
	sorted []PortError // by ID; nil where that is to be done
}

// refusal is a ServicePort that was refused.
type refusal struct {
	port *ServicePort // as it was refused
	why  error
}

// heldBack returns the refused ServicePorts that the next Sync leaves as the
// kernel has them, so that they cost the others nothing. One that changed is
// tried, and so are all if something of inForce went and may have made room. Those
// of families that are left alone wait for these.
func (r *refusals) heldBack(inForce, want *Snapshot, families []Family, now time.Time) []PortID {
	if r.now = len(r.ports) == 0; r.now {
		return nil
	}
	for id, refused := range r.ports {
		if want.Ports.Get(id) != refused.port {
			delete(r.ports, id)
			r.sorted = nil
		}
	}
	if soonest := r.last.Add(freedPause); soonest.Before(r.again) && frees(inForce, want, families) {
		r.again, r.tries = soonest, 0
	}
	r.now = !now.Before(r.again)
	var held []PortID
	for id := range r.ports {
		if !r.now || slices.Contains(families, id.Family) {
			held = append(held, id)
		}
	}
	return held
}

// frees reports whether a ServicePort that the kernel holds, of a family that is not
// left alone, is not wanted any more.
func frees(inForce, want *Snapshot, families []Family) bool {
	if inForce == nil {
		return false
	}
	for old, cur := range Diff(inForce.Ports, want.Ports) {
		if cur == nil && !slices.Contains(families, old.ID.Family) {
			return true
		}
	}
	return false
}

// note takes up what a Sync of target, which left held alone, was refused. It
// logs what was not refused before, or was for another reason.
func (r *refusals) note(log *slog.Logger, target *Snapshot, held []PortID, failed []PortError, now time.Time) {
	before := r.ports
	r.ports = make(map[PortID]refusal, len(held)+len(failed))
	for _, id := range held {
		r.ports[id] = before[id]
	}
	news := &PartialError{}
	for _, f := range failed {
		if old, ok := before[f.ID]; !ok || old.why.Error() != f.Err.Error() {
			news.Failed = append(news.Failed, f)
		}
		r.ports[f.ID] = refusal{target.Ports.Get(f.ID), f.Err}
	}
	if !r.now && len(failed) == 0 {
		return // none was tried
	}
	r.sorted = nil
	if r.now {
		r.tries, r.last = r.tries+1, now
		r.again = now.Add(growing(refusedFirst, refusedMost, r.tries))
	}
	switch {
	case len(r.ports) == 0:
		r.tries = 0
		if len(before) > 0 {
			log.Info("all Service ports that were refused are programmed")
		}
	case len(news.Failed) > 0:
		log.Warn("some Service ports are not programmed; the others are", "error", news, "refused", len(r.ports))
	}
}

// list returns all refused ServicePorts, sorted by ID.
func (r *refusals) list() []PortError {
	if r.sorted == nil && len(r.ports) > 0 {
		for id, refused := range r.ports {
			r.sorted = append(r.sorted, PortError{id, refused.why})
		}
		slices.SortFunc(r.sorted, func(a, b PortError) int { return a.ID.Compare(b.ID) })
	}
	return r.sorted
}

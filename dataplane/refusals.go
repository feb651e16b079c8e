package dataplane

import (
	"log/slog"
	"slices"
	"time"
)

// refusals are the ServicePorts that the Backend could not program. Each is tried
// again after pauses of its own, and those that are due about the same time
// together, because each try may cost as much as all.
type refusals struct {
	ports  map[PortID]refusal
	last   time.Time   // the last time that any was tried again
	sorted []PortError // by ID; nil where that is to be done
}

// refusal is a ServicePort that was refused.
type refusal struct {
	port  *ServicePort // as it was refused
	why   error
	tries int       // in a row
	again time.Time // the next one is not before
}

// heldBack returns the refused ServicePorts that the next Sync leaves as the
// kernel has them, so that they cost the others nothing. One that changed is
// tried, and so are all if something of inForce went and may have made room. Those
// of families that are left alone wait for these.
func (r *refusals) heldBack(inForce, want *Snapshot, families []Family, now time.Time) []PortID {
	if len(r.ports) == 0 {
		return nil
	}
	for id, refused := range r.ports {
		if want.Ports.Get(id) != refused.port {
			delete(r.ports, id)
			r.sorted = nil
		}
	}
	r.hasten(inForce, want, families)
	next := r.again(families)
	due, soon := !next.IsZero() && !now.Before(next), now.Add(retryPause)
	var held []PortID
	for id, refused := range r.ports {
		if !due || refused.again.After(soon) || slices.Contains(families, id.Family) {
			held = append(held, id)
		}
	}
	if len(held) < len(r.ports) {
		r.last = now
	}
	return held
}

// again returns when the next try is due; zero: never. Those of families that are
// left alone are not tried before these.
func (r *refusals) again(families []Family) time.Time {
	var next time.Time
	for id, refused := range r.ports {
		if !slices.Contains(families, id.Family) {
			next = earlier(next, refused.again)
		}
	}
	if soonest := r.last.Add(retryPause); !next.IsZero() && next.Before(soonest) {
		return soonest
	}
	return next
}

// hasten has the refused ServicePorts tried sooner if the kernel gets room by what
// goes. Endpoints go all the time in a large cluster, so that they count for less.
func (r *refusals) hasten(inForce, want *Snapshot, families []Family) {
	soonest := r.last.Add(shrunkPause)
	gone, shrunk := frees(inForce, want, families)
	if gone {
		soonest = r.last.Add(freedPause)
	}
	for id, refused := range r.ports {
		if (gone || shrunk) && soonest.Before(refused.again) {
			refused.again = soonest
			if gone {
				refused.tries = 0
			}
			r.ports[id] = refused
		}
	}
}

// frees reports whether a ServicePort that the kernel holds, of a family that is not
// left alone, is not wanted any more, and whether one has less than it had.
func frees(inForce, want *Snapshot, families []Family) (gone, shrunk bool) {
	if inForce == nil {
		return false, false
	}
	for old, cur := range Diff(inForce.Ports, want.Ports) {
		if old == nil || slices.Contains(families, old.ID.Family) {
			continue
		}
		if cur == nil {
			return true, true
		}
		shrunk = shrunk || size(cur) < size(old)
	}
	return false, shrunk
}

// size returns how many frontends, endpoints and source ranges a ServicePort has.
func size(p *ServicePort) int {
	n := len(p.Frontends)
	for _, f := range p.Frontends {
		n += len(f.Pool.Endpoints) + len(f.Sources)
	}
	return n
}

// note takes up what a Sync of target, which left held alone, was refused. It
// logs what was not refused before, or was for another reason.
func (r *refusals) note(log *slog.Logger, target *Snapshot, held []PortID, failed []PortError, now time.Time) {
	before := r.ports
	r.ports = make(map[PortID]refusal, len(held)+len(failed))
	for _, id := range held {
		r.ports[id] = before[id]
	}
	if len(held) == len(before) && len(failed) == 0 {
		return // none was tried
	}
	news := &PartialError{}
	again := map[int]time.Time{} // by the number of tries, so that those of one Sync stay together
	for _, f := range failed {
		old, ok := before[f.ID]
		if !ok || old.why.Error() != f.Err.Error() {
			news.Failed = append(news.Failed, f)
		}
		tries := old.tries + 1
		if again[tries].IsZero() {
			again[tries] = now.Add(growing(refusedFirst, refusedMost, tries))
		}
		r.ports[f.ID] = refusal{target.Ports.Get(f.ID), f.Err, tries, again[tries]}
	}
	r.sorted = nil
	switch {
	case len(r.ports) == 0:
		log.Info("all Service ports that were refused are programmed")
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

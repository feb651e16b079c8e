package dataplane

import (
	"context"
	"slices"
	"time"
)

const (
	// auditDuty is how many times as long as an audit the time to the next one is.
	auditDuty = 100
	// disturbedDuty is the same while somebody else changes what the Backend wrote.
	disturbedDuty = 4
	// mostLooks is how often the kernel is looked at while Syncs go on. What then
	// still differs is looked at once more between two Syncs.
	mostLooks = 3
)

// audit is one comparison of the kernel with what it should hold, for a repair.
// It consists of one look, or of several where Syncs came between.
type audit struct {
	running bool          // a look goes on
	looks   int           // that are over, of this audit
	differs []string      // what all of them found
	cost    time.Duration // of all of them
	syncs   uint64        // Syncs begun when the last look began
	found   Verification  // what is to be repaired, or just noted
	read    bool          // the kernel was read back
	repair  bool
	unsure  bool // the looks did not agree, so that the next audit reads again
	urgent  bool // somebody is known to have changed something
	over    bool // a Sync is to follow
}

// look is what one look at the kernel found.
type look struct {
	Verification
	whole       bool // all that a repair would mend was seen
	undisturbed bool // nobody changed anything since the last look, so there was none
	err         error
}

// lookDue is when to look at the kernel next; zero: not before something happens.
func (s *Syncer) lookDue() time.Time {
	if s.inForce == nil || s.audit.running || s.audit.over || s.cfg.AuditInterval < 0 {
		return time.Time{}
	}
	due := s.audited.Add(max(s.cfg.AuditInterval, auditDuty*s.auditCost))
	if s.disturbed && s.lookSoon.Before(due) {
		due = s.lookSoon
	}
	return due
}

// startAudit looks at the kernel, alongside Syncs if the Backend can.
func (s *Syncer) startAudit(ctx context.Context) {
	s.audit = audit{urgent: s.disturbed || s.audit.unsure}
	s.disturbed = false
	s.look(ctx)
}

func (s *Syncer) look(ctx context.Context) {
	s.audit.running, s.audit.syncs = true, s.syncs
	want, failing, clean := s.inForce, s.hold(s.faults.families()), s.clean
	if !s.traits.ObservesAlongside {
		s.looked(ctx, s.lookOnce(ctx, want, failing, clean))
		return
	}
	s.lookers.Go(func() { s.looks <- s.lookOnce(ctx, want, failing, clean) })
}

// lookOnce reads the kernel back and compares it with want, less the families that
// fail. clean: the last look found nothing.
func (s *Syncer) lookOnce(ctx context.Context, want *Snapshot, failing []Family, clean bool) look {
	l := look{Verification: Verification{At: time.Now(), Revision: want.Revision}}
	if w, ok := s.backend.(Watched); ok && clean && w.Undisturbed() {
		l.whole, l.undisturbed = true, true
		l.Took = time.Since(l.At)
		return l
	}
	have, err := s.backend.Observe(ctx)
	if err != nil {
		l.err = err
		return l
	}
	l.Differences = have.Differences(Expect(want).without(failing))
	l.whole = have.Whole
	l.Took = time.Since(l.At)
	return l
}

// looked judges a look. If a Sync came between, what differs may be of that, so
// that another look decides.
func (s *Syncer) looked(ctx context.Context, l look) {
	a := &s.audit
	a.running = false
	a.cost += l.Took
	if ctx.Err() != nil || s.inForce == nil { // the next Sync reads all back
		return
	}
	if a.looks++; a.looks == 1 {
		a.differs = l.Differences
	} else {
		a.differs = slices.DeleteFunc(a.differs, func(d string) bool { return !slices.Contains(l.Differences, d) })
	}
	between := a.syncs != s.syncs
	if l.err == nil && between && (len(a.differs) > 0 || a.urgent && len(l.Differences) > 0) {
		if a.looks < mostLooks && !a.urgent {
			s.look(ctx)
			return
		}
		last := s.lookOnce(ctx, s.inForce, s.hold(s.faults.families()), false)
		a.cost += last.Took
		l, a.differs, between = last, last.Differences, false
	}
	a.unsure = between || len(l.Differences) > len(a.differs)
	l.Differences = a.differs
	s.judge(l)
}

// judge decides on a repair: for what was found, or because not all can be seen.
func (s *Syncer) judge(l look) {
	a := &s.audit
	s.audited, s.auditCost = time.Now(), a.cost
	a.over, a.read = true, !l.undisturbed
	a.found, a.repair = l.Verification, l.err != nil || !l.whole || len(l.Differences) > 0
	if l.err != nil {
		s.cfg.Log.Error("cannot read the kernel back; programming it again", "error", l.err)
		return
	}
	if l.undisturbed {
		return
	}
	s.noteLook(l)
	if n := len(l.Differences); n > 0 {
		s.noteDamage(l.At)
		s.cfg.Log.Warn("the kernel is not as it was programmed; repairing it", "differences", n, "first", firstFew(l.Differences))
	}
}

// noteLook counts a look that decides.
func (s *Syncer) noteLook(l look) {
	s.clean = l.whole && len(l.Differences) == 0 && !s.disturbed && !s.audit.unsure
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drift.Checks++
	s.drift.LastCheck = l.At
	if len(l.Differences) > 0 {
		s.drift.LastFound = l.Verification
	}
}

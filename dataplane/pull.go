package dataplane

import "time"

// Notify says that SyncerConfig.Next may have a newer Snapshot. It never blocks.
// Next is not called before the next Sync is due, so that a Snapshot is built
// once, however many changes come until then.
func (s *Syncer) Notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Behind.IsZero() {
		s.status.Behind = time.Now()
	}
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// newest returns the newest Snapshot, nil before the first. Run's goroutine
// alone calls it.
func (s *Syncer) newest() *Snapshot {
	var next *Snapshot
	if s.cfg.Next != nil {
		next = s.cfg.Next()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next != nil {
		s.want, s.status.Wanted = next, next.Revision
	}
	return s.want
}

// idle reports whether there is nothing to do after all: what Notify told of
// changed nothing, and neither a retry nor a repair is due.
func (s *Syncer) idle(now time.Time) bool {
	want := s.newest()
	if want == nil {
		return true
	}
	if s.cfg.Next == nil || s.inForce == nil || want != s.tried || s.audit.over {
		return false
	}
	if due := s.nextDue(now); !due.IsZero() && !due.After(now) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.poke) == 0 {
		s.status.Behind = time.Time{}
	}
	return true
}

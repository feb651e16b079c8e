package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Verification is one comparison of the kernel with what it must hold.
type Verification struct {
	At          time.Time
	Took        time.Duration
	Revision    uint64   // of the Snapshot that the kernel was compared with
	Differences []string // in plain words; none: the kernel is as wanted
	// Repaired says that a repair followed, and Left what it left.
	Repaired bool
	Left     []string
}

// Drift counts what verifications found. All but LastFound only grow.
type Drift struct {
	Checks    uint64 // comparisons made, those that failed not among them
	Found     uint64 // differences that were then repaired
	Repairs   uint64
	LastCheck time.Time
	LastFound Verification // the last that found something; zero: none did
}

// errNothingYet is Verify's before the first Snapshot.
var errNothingYet = errors.New("nothing is wanted yet: Services are not known")

// Drift tells what verifications have found so far: those of the schedule
// (SyncerConfig.AuditInterval) and those that Verify was asked for.
func (s *Syncer) Drift() Drift {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drift
}

// Verify compares the kernel with the newest Snapshot; with repair it also
// makes the kernel as wanted where it is not, and compares again. It waits for a
// Sync that goes on.
func (s *Syncer) Verify(ctx context.Context, repair bool) (Verification, error) {
	var v Verification
	err := s.between(ctx, func(ctx context.Context) error {
		want := s.settled(ctx)
		if want == nil {
			return errNothingYet
		}
		var err error
		v, err = s.compare(ctx, want)
		v.Differences = append(v.Differences, s.notProgrammed()...)
		if err != nil || !repair || len(v.Differences) == 0 {
			return err
		}
		s.cfg.Log.Warn("the kernel is not as wanted; repairing it on request",
			"differences", len(v.Differences), "first", firstFew(v.Differences))
		s.inForce = nil
		if err := s.syncOnce(ctx); s.inForce == nil { // not even in part
			return err
		}
		after, err := s.compare(ctx, want)
		after.Differences = append(after.Differences, s.notProgrammed()...)
		v.Repaired, v.Left = err == nil, after.Differences
		if v.Repaired {
			s.noteRepair(v)
		}
		return err
	})
	return v, err
}

// Observe reads the kernel back and tells what it should hold.
func (s *Syncer) Observe(ctx context.Context) (have *Observation, want *Snapshot, err error) {
	err = s.between(ctx, func(ctx context.Context) error {
		if want = s.settled(ctx); want == nil {
			return errNothingYet
		}
		s.clean = false // nobody compares what is read
		s.hold(s.faults.families())
		have, err = s.backend.Observe(ctx)
		return err
	})
	return have, want, err
}

// settled is the newest Snapshot, after the Sync that it waits for, if it does:
// what is on its way is no difference.
func (s *Syncer) settled(ctx context.Context) *Snapshot {
	want := s.newest()
	if want != nil && s.inForce != nil && s.Status().Served != want.Revision {
		_ = s.syncOnce(ctx) // it is logged, and in the status
		want = s.tried
	}
	return want
}

// between has Run's goroutine do something between two Syncs. do gets Run's
// context, because nobody who stops waiting may leave a Sync half done.
func (s *Syncer) between(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case s.asks <- func(run context.Context) { done <- do(run) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// notProgrammed says which families the kernel cannot be compared for.
func (s *Syncer) notProgrammed() []string {
	var out []string
	for _, f := range s.faults.list() {
		out = append(out, fmt.Sprintf("%s is not programmed: %v", f.Family, f.Err))
	}
	return out
}

// compare, of Run's goroutine, reads the kernel back and counts what differs.
func (s *Syncer) compare(ctx context.Context, want *Snapshot) (Verification, error) {
	l := s.lookOnce(ctx, want, s.hold(s.faults.families()), false)
	if l.err == nil {
		s.noteLook(l)
	}
	return l.Verification, l.err
}

// firstFew returns as many differences as fit a line of the log.
func firstFew(differences []string) []string {
	const most = 5
	return differences[:min(len(differences), most)]
}

// noteDamage notes since when the kernel differs from what was programmed; zero:
// it does not.
func (s *Syncer) noteDamage(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since.IsZero() || s.status.Damaged.IsZero() {
		s.status.Damaged = since
	}
}

// noteRepair notes that the kernel was repaired after v.
func (s *Syncer) noteRepair(v Verification) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drift.Repairs++
	s.drift.Found += uint64(len(v.Differences))
	s.drift.LastFound = v
}

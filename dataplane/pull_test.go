package dataplane

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// source is what SyncerConfig.Next asks: it builds a Snapshot of all the changes
// that there were.
type source struct {
	mu      sync.Mutex
	syncer  *Syncer
	changes int
	builds  int
	built   int // how many changes are in the last one
}

// change is one of which the Syncer is told.
func (s *source) change() {
	s.mu.Lock()
	s.changes++
	s.mu.Unlock()
	s.syncer.Notify()
}

func (s *source) next() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes == s.built {
		return nil
	}
	s.builds, s.built = s.builds+1, s.changes
	return snapshot(uint64(s.changes), service("a"))
}

// pull runs a Syncer that takes its Snapshots from a source.
func pull(t *testing.T, k *kernel, cfg SyncerConfig, do func(*source)) {
	t.Helper()
	from := &source{}
	cfg.Next = from.next
	run(t, k, cfg, func(s *Syncer) {
		from.syncer = s
		do(from)
	})
}

func TestSyncerBuildsASnapshotForEachSync(t *testing.T) {
	k := &kernel{takes: 5 * time.Millisecond}
	pull(t, k, SyncerConfig{AuditInterval: -1}, func(from *source) {
		for range 1000 { // ten in a millisecond
			from.change()
			time.Sleep(100 * time.Microsecond)
		}
		pass(time.Second)
		if last := k.syncs[len(k.syncs)-1]; last.revision != 1000 {
			t.Errorf("the last Sync was of revision %d", last.revision)
		}
		if from.builds != len(k.syncs) || from.builds > 100 {
			t.Errorf("%d builds for %d Syncs of 1,000 changes", from.builds, len(k.syncs))
		}
		if st := from.syncer.Status(); st.Wanted != 1000 || st.InForce != 1000 || !st.Behind.IsZero() {
			t.Errorf("status %+v", st)
		}
	})
}

// TestSyncerPulls: what becomes of a Notify, in the order in which it happens.
func TestSyncerPulls(t *testing.T) {
	k := &kernel{}
	pull(t, k, SyncerConfig{AuditInterval: time.Minute}, func(from *source) {
		s := from.syncer
		revisions := func(want ...uint64) {
			t.Helper()
			k.mu.Lock()
			defer k.mu.Unlock()
			var got []uint64
			for _, c := range k.syncs {
				got = append(got, c.revision)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("Syncs of %v, want %v", got, want)
			}
		}
		s.Notify()
		pass(time.Second)
		revisions() // there is no Snapshot yet
		from.change()
		pass(time.Second)
		revisions(1)
		s.Notify()
		if s.Status().Behind.IsZero() {
			t.Error("not behind while nobody has looked")
		}
		pass(time.Second)
		revisions(1) // nothing was new
		if !s.Status().Behind.IsZero() {
			t.Error("behind, though nothing was new")
		}
		k.take(time.Second)
		from.change()
		pass(500 * time.Millisecond)
		from.change() // while the Sync of the one before it is under way
		pass(600 * time.Millisecond)
		revisions(1, 2)
		if s.Status().Behind.IsZero() {
			t.Error("not behind, though there was a change during the Sync")
		}
		pass(2 * time.Second)
		revisions(1, 2, 3)
		k.take(0)
		pass(time.Minute)
		revisions(1, 2, 3, 3) // an audit is due though nothing is new
		from.change()
		if v, err := s.Verify(context.Background(), false); err != nil || v.Revision != 4 {
			t.Errorf("compared with revision %d, error %v, want the newest", v.Revision, err)
		}
		pass(time.Second)
		revisions(1, 2, 3, 3, 4)
	})
}

func TestSyncerPullsAgainAfterAFailure(t *testing.T) {
	k := &kernel{}
	pull(t, k, SyncerConfig{AuditInterval: -1}, func(from *source) {
		k.meet(errNothingYet)
		from.change()
		pass(time.Second)
		failed := len(k.syncs)
		from.change()
		k.meet(nil)
		pass(20 * time.Second)
		if last := k.syncs[len(k.syncs)-1]; failed == 0 || last.revision != 2 || from.syncer.Status().InForce != 2 {
			t.Errorf("%d failed, then %+v", failed, last)
		}
	})
}

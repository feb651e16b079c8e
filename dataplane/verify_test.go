package dataplane

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestAuditRepairsOnlyWhatDiffers(t *testing.T) {
	for _, c := range []struct {
		name            string
		whole           bool
		drift           []string
		readBack        int // Syncs with prev nil after the first
		checks, repairs uint64
	}{
		{"all can be seen and nothing differs", true, nil, 0, 10, 0},
		{"something differs: repaired once", true, []string{"a rule is gone"}, 1, 10, 1},
		{"not all can be seen: repaired each time", false, nil, 10, 10, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &kernel{whole: c.whole}
			run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
				s.Submit(snapshot(1, service("a")))
				pass(0)
				k.drift(c.drift...)
				pass(10*time.Minute + time.Second)
				n := 0
				for _, sync := range k.syncs[1:] {
					if sync.readBack {
						n++
					}
				}
				d := s.Drift()
				if n != c.readBack || d.Checks != c.checks || d.Repairs != c.repairs || d.Found != uint64(len(c.drift)) {
					t.Errorf("%d repairs, drift %+v", n, d)
				}
				if len(c.drift) > 0 && (!d.LastFound.Repaired || !slices.Equal(d.LastFound.Differences, c.drift)) {
					t.Errorf("last found: %+v", d.LastFound)
				}
			})
		})
	}
}

func TestVerifyOnRequest(t *testing.T) {
	k := &kernel{whole: true}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		if _, err := s.Verify(context.Background(), false); !errors.Is(err, errNothingYet) {
			t.Errorf("before any Snapshot: %v", err)
		}
		s.Submit(snapshot(1, service("a")))
		pass(0)
		k.drift("a rule is gone")
		for _, repair := range []bool{false, true} {
			v, err := s.Verify(context.Background(), repair)
			if err != nil || len(v.Differences) != 1 || v.Repaired != repair || len(v.Left) > 0 {
				t.Errorf("repair %v: %+v, %v", repair, v, err)
			}
		}
		if v, err := s.Verify(context.Background(), true); err != nil || len(v.Differences) > 0 || v.Repaired {
			t.Errorf("after the repair: %+v, %v", v, err)
		}
		s.Submit(snapshot(2, service("c"))) // what is on its way is no difference
		if v, err := s.Verify(context.Background(), false); err != nil || len(v.Differences) > 0 || v.Revision != 2 {
			t.Errorf("right after a Submit: %+v, %v", v, err)
		}
		s.Submit(snapshot(3, service("b"))) // and life goes on
		pass(time.Second)
		if s.Status().InForce != 3 {
			t.Error("a Snapshot after a repair is not in force")
		}
	})
}

func TestVerifyWaitsNoLongerThanItsCaller(t *testing.T) {
	k := &kernel{takes: time.Hour}
	run(t, k, SyncerConfig{}, func(s *Syncer) {
		s.Submit(snapshot(1))
		pass(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := s.Verify(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestDamageIsKnownUntilTheRepair: from the comparison that finds a difference
// to the Sync that mends it, the status says that the kernel is damaged.
func TestDamageIsKnownUntilTheRepair(t *testing.T) {
	k := &kernel{whole: true}
	run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
		damaged := func(want bool, when string) {
			t.Helper()
			if since := s.Status().Damaged; since.IsZero() == want {
				t.Errorf("%s: damaged since %v, want %v", when, since, want)
			}
		}
		s.Submit(snapshot(1, service("a")))
		pass(0)
		damaged(false, "as programmed")
		k.drift("a rule is gone")
		pass(50 * time.Second)
		damaged(false, "before anybody looks")
		k.meet(errors.New("the kernel is busy"))
		pass(11 * time.Second)
		damaged(true, "while the repair fails")
		s.Submit(snapshot(2, service("b")))
		pass(11 * time.Second)
		damaged(true, "while another change fails")
		k.meet(nil)
		pass(12 * time.Second)
		damaged(false, "after the repair")
	})
}

package dataplane

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// tornKernel is one whose reads mix two states when a Sync runs into them: what
// somebody else wrote may be missing, and some of what we wrote.
type tornKernel struct {
	*kernel
	disturbed chan struct{}
	unsure    atomic.Bool
	noise     int // elements that seem to be wrong after a torn read; 0: none
}

func (k *tornKernel) Disturbed() <-chan struct{} {
	k.disturbed = make(chan struct{}, 1)
	return k.disturbed
}

func (k *tornKernel) Undisturbed() bool { return !k.unsure.Load() }

func (k *tornKernel) begun() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.syncs)
}

func (k *tornKernel) Observe(ctx context.Context) (*Observation, error) {
	k.unsure.Store(false)
	before := k.begun()
	o, err := k.kernel.Observe(ctx)
	if err != nil || k.begun() == before {
		return o, err
	}
	o.Other = nil
	if k.noise > 0 {
		k.noise++ // each time another number, as another part is torn
		o.Other = []string{fmt.Sprintf("missing or wrong: elements (%d) of x", k.noise)}
	}
	return o, nil
}

// TestDriftBehindTornReads has reads that Syncs run into hide what is wrong. It is
// found all the same.
func TestDriftBehindTornReads(t *testing.T) {
	for _, tc := range []struct {
		name     string
		noise    int
		told     bool          // that somebody changed something
		changes  int           // after that
		interval time.Duration // of changes
		after    time.Duration // how long there is none
	}{
		{"the only read after a foreign change misses it", 0, true, 1, time.Second, time.Hour},
		{"changes go on, and each read finds something else", 1, false, 36_000, 200 * time.Millisecond, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := &tornKernel{kernel: &kernel{whole: true, observes: 300 * time.Millisecond, traits: Traits{ObservesAlongside: true}}, noise: tc.noise}
			k.unsure.Store(!tc.told) // else audits know that nobody changed anything
			runOn(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
				s.Submit(snapshot(1, service("a"), service("b")))
				pass(30 * time.Second)
				k.drift("an element that is nobody's")
				if tc.told {
					k.unsure.Store(true)
					k.disturbed <- struct{}{}
					pass(disturbedFirst + 20*time.Millisecond) // the look goes on
				}
				for r := range tc.changes {
					k.unsure.Store(k.unsure.Load() || !tc.told)
					s.Submit(snapshot(uint64(r+2), revised(uint64(r+2)), service("b")))
					pass(tc.interval)
				}
				pass(tc.after)
				if d := s.Drift(); d.Repairs != 1 {
					t.Errorf("drift %+v; want it repaired once", d)
				}
			})
		})
	}
}

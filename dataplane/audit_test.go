package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestAuditKeepsNoChangeWaiting: the kernel is read back alongside changes, those
// are no drift, and what is drift is found.
func TestAuditKeepsNoChangeWaiting(t *testing.T) {
	for _, c := range []struct {
		name    string
		every   time.Duration // a change of a Service
		drift   []string
		repairs uint64
		most    time.Duration // that a change waits
	}{
		{"changes all the time", 100 * time.Millisecond, nil, 0, 50 * time.Millisecond},
		{"one change a minute", time.Minute, nil, 0, 50 * time.Millisecond},
		{"drift while there are changes", 100 * time.Millisecond, []string{"a rule is gone"}, 1, 10 * time.Second},
		{"drift without changes", time.Hour, []string{"a rule is gone"}, 1, 50 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &kernel{whole: true, observes: 9 * time.Second, traits: Traits{ObservesAlongside: true}}
			run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
				s.Submit(snapshot(1, revised(1)))
				pass(time.Second)
				k.drift(c.drift...)
				longest := time.Duration(0)
				revision := uint64(1)
				for end := time.Now().Add(2 * time.Hour); time.Now().Before(end); {
					revision++
					s.Submit(snapshot(revision, revised(revision), service("stays")))
					start := time.Now()
					for s.Status().Served != revision {
						pass(10 * time.Millisecond)
					}
					longest = max(longest, time.Since(start))
					pass(c.every)
				}
				if d := s.Drift(); d.Repairs != c.repairs || d.Checks < 5 {
					t.Errorf("drift %+v; want %d repairs", d, c.repairs)
				}
				if longest > c.most {
					t.Errorf("a change waited %v", longest)
				}
			})
		})
	}
}

// revised is a Service whose endpoint is another one in each revision.
func revised(revision uint64) *ServicePort {
	p := service("numbered")
	addr := netip.AddrFrom4([4]byte{10, byte(revision >> 16), byte(revision >> 8), byte(revision)})
	p.Frontends[0].Pool = &Pool{Endpoints: []Endpoint{{Addr: netip.AddrPortFrom(addr, 80)}}}
	return p
}

// TestAuditCostsAHundredthOfTheTime, whether or not the Backend can be read
// alongside changes.
func TestAuditCostsAHundredthOfTheTime(t *testing.T) {
	for _, alongside := range []bool{true, false} {
		for _, takes := range []time.Duration{10 * time.Millisecond, 9 * time.Second} {
			t.Run(fmt.Sprint(alongside, takes), func(t *testing.T) {
				k := &kernel{whole: true, observes: takes, traits: Traits{ObservesAlongside: alongside}}
				run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
					s.Submit(snapshot(1, service("a")))
					pass(10 * time.Hour)
					want := uint64(10 * time.Hour / max(time.Minute, 100*takes+takes))
					if got := s.Drift().Checks; got < want-1 || got > want+1 {
						t.Errorf("%d audits in 10 hours; want %d", got, want)
					}
				})
			})
		}
	}
}

// watchedKernel notices changes by others.
type watchedKernel struct {
	*kernel
	disturbed chan struct{}
}

// Disturbed makes the channel as the Syncer asks for it, in the bubble of its time.
func (k *watchedKernel) Disturbed() <-chan struct{} {
	k.disturbed = make(chan struct{}, 1)
	return k.disturbed
}
func (k *watchedKernel) Undisturbed() bool { return false }

// TestDisturbanceIsRepairedSoon, also one that comes while the kernel is read.
func TestDisturbanceIsRepairedSoon(t *testing.T) {
	for _, before := range []time.Duration{30 * time.Second, time.Minute + 10*time.Millisecond} {
		k := &watchedKernel{&kernel{whole: true, observes: 20 * time.Millisecond, traits: Traits{ObservesAlongside: true}}, nil}
		runOn(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
			s.Submit(snapshot(1, service("a")))
			pass(before)
			k.drift("a rule is gone")
			k.disturbed <- struct{}{}
			pass(disturbedPause + 100*time.Millisecond)
			if d := s.Drift(); d.Repairs != 1 || !slices.Equal(d.LastFound.Differences, []string{"a rule is gone"}) {
				t.Errorf("disturbed after %v: drift %+v", before, d)
			}
		})
	}
}

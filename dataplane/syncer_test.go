package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// kernel is a Backend that keeps the state in memory and fails on demand.
type kernel struct {
	mu     sync.Mutex
	syncs  []call
	holds  *Snapshot
	fail   error           // every Sync fails wholly
	refuse map[string]bool // Services that cannot be programmed
	takes  time.Duration
	// fails are the families that cannot be programmed, each try of which takes
	// failTakes; hold are those that Syncs leave alone.
	fails     map[Family]error
	failTakes time.Duration
	hold      []Family
	traits    Traits
	// drifted is what Observe finds until a Sync reads back; whole as Observation's.
	drifted []string
	whole   bool
	// observes is how long Observe takes.
	observes time.Duration
}

type call struct {
	at       time.Time
	readBack bool
	revision uint64
	services []string // as wanted in this Sync
	hold     []Family
}

// take makes later Syncs take so long.
func (k *kernel) take(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.takes = d
}

func (k *kernel) Sync(_ context.Context, prev, want *Snapshot) error {
	k.mu.Lock()
	takes := k.takes
	k.mu.Unlock()
	time.Sleep(takes)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.syncs = append(k.syncs, call{time.Now(), prev == nil, want.Revision, names(want), k.hold})
	if k.fail != nil {
		return k.fail
	}
	partial := &PartialError{}
	for _, port := range Diff(portsOf(prev), want.Ports) {
		if port != nil && k.refuse[port.ID.Service] {
			partial.Failed = append(partial.Failed, PortError{port.ID, errors.New("no room")})
		}
	}
	k.holds = want
	if prev == nil {
		k.drifted = nil
	}
	var errs []error
	if len(partial.Failed) > 0 {
		errs = append(errs, partial)
	}
	failed := &FamilyError{}
	for _, f := range []Family{IPv4, IPv6} {
		if err := k.fails[f]; err != nil && !slices.Contains(k.hold, f) {
			time.Sleep(k.failTakes)
			failed.Failed = append(failed.Failed, FamilyFailure{f, err})
		}
	}
	if len(failed.Failed) > 0 {
		errs = append(errs, failed)
	}
	return errors.Join(errs...)
}

func (k *kernel) Hold(families []Family) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hold = families
}

// count is how many Syncs there were, while others may go on.
func (k *kernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.syncs)
}

// meet changes how the kernel meets the Syncs to come.
func (k *kernel) meet(fail error, refuse ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail, k.refuse = fail, map[string]bool{}
	for _, name := range refuse {
		k.refuse[name] = true
	}
}

func (k *kernel) Observe(context.Context) (*Observation, error) {
	k.mu.Lock()
	defer time.Sleep(k.observes) // what is read is soon old
	defer k.mu.Unlock()
	o := Expect(k.holds).without(k.hold)
	o.Other, o.Whole = k.drifted, k.whole
	return o, nil
}

func (k *kernel) Close() error { return nil }

func (k *kernel) Traits() Traits { return k.traits }

// drift damages what the kernel holds.
func (k *kernel) drift(what ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drifted = what
}

func names(s *Snapshot) []string {
	var out []string
	for p := range s.Ports.All() {
		out = append(out, p.ID.Service)
	}
	return out
}

func snapshot(revision uint64, ports ...*ServicePort) *Snapshot {
	return &Snapshot{Revision: revision, Node: &Node{}, Ports: MakePorts(ports...)}
}

func service(name string) *ServicePort {
	return &ServicePort{
		ID: PortID{Namespace: "ns", Service: name, Protocol: TCP, Family: IPv4},
		Frontends: []Frontend{{
			Kind: ClusterIP, Addr: netip.MustParseAddrPort("10.96.0.1:80"), Pool: &Pool{},
		}},
	}
}

// run starts a Syncer on k in a bubble of fake time and stops it at the end of do.
func run(t *testing.T, k *kernel, cfg SyncerConfig, do func(s *Syncer)) {
	t.Helper()
	runOn(t, k, cfg, do)
}

func runOn(t *testing.T, k Backend, cfg SyncerConfig, do func(s *Syncer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Log = slog.New(slog.DiscardHandler)
		s := NewSyncer(k, cfg)
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		do(s)
		cancel()
		<-done
	})
}

// pass lets time pass and the Syncer come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSyncerTakesTheFirstSnapshotAtOnceAndReadsTheKernelBack(t *testing.T) {
	k := &kernel{}
	run(t, k, SyncerConfig{}, func(s *Syncer) {
		pass(time.Hour)
		if len(k.syncs) != 0 {
			t.Fatal("a Sync before any Snapshot")
		}
		start := time.Now()
		s.Submit(snapshot(1, service("a")))
		pass(0)
		if len(k.syncs) != 1 || !k.syncs[0].readBack || k.syncs[0].at != start {
			t.Fatalf("got %+v, want one Sync with prev nil at once", k.syncs)
		}
		if st := s.Status(); st.InForce != 1 || !st.Behind.IsZero() || st.Err != nil {
			t.Fatalf("status %+v", st)
		}
	})
}

func TestSyncerMakesOneSyncOfManySnapshots(t *testing.T) {
	for _, test := range []struct {
		takes, interval, pause time.Duration
		grows                  bool
	}{
		{takes: 10 * time.Millisecond, pause: 20 * time.Millisecond, grows: true},
		{takes: 20 * time.Millisecond, pause: 40 * time.Millisecond, grows: true},
		{takes: time.Millisecond, pause: 2 * time.Millisecond, grows: true},
		{takes: time.Millisecond, pause: 4 * time.Millisecond},
		{takes: 5 * time.Millisecond, pause: 20 * time.Millisecond},
		{takes: 30 * time.Millisecond, pause: 20 * time.Millisecond},
		{takes: time.Millisecond, interval: 50 * time.Millisecond, pause: 50 * time.Millisecond},
	} {
		k := &kernel{takes: test.takes, traits: Traits{CostGrows: test.grows}}
		run(t, k, SyncerConfig{AuditInterval: -1, MinInterval: test.interval}, func(s *Syncer) {
			for i := range 200 { // one a millisecond
				s.Submit(snapshot(uint64(i+1), service("a")))
				pass(time.Millisecond)
			}
			pass(time.Second)
			if last := k.syncs[len(k.syncs)-1]; last.revision != 200 || last.readBack {
				t.Errorf("the last Sync was %+v, want revision 200 as a change to what the kernel holds", last)
			}
			each := test.takes + test.pause
			if n, want := len(k.syncs), int(200*time.Millisecond/each); n < want || n > want+2 {
				t.Errorf("%+v: %d Syncs for 200 Snapshots in 200 ms; want about %d", test, n, want)
			}
			for i := 1; i < len(k.syncs); i++ {
				if gap := k.syncs[i].at.Sub(k.syncs[i-1].at); gap < each {
					t.Errorf("%+v: Syncs %d and %d ended %v apart", test, i-1, i, gap)
				}
			}
		})
	}
}

func TestSyncerRetriesWithGrowingPauses(t *testing.T) {
	k := &kernel{fail: errors.New("netlink: no buffer space")}
	run(t, k, SyncerConfig{}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a")))
		pass(time.Minute)
		for i := 1; i < len(k.syncs); i++ {
			gap := k.syncs[i].at.Sub(k.syncs[i-1].at)
			least := min(backOffFirst<<(i-1), backOffMost)
			if gap < least || gap > least+least/4 {
				t.Errorf("retry %d after %v, want %v and up to a quarter more", i, gap, least)
			}
			if !k.syncs[i].readBack {
				t.Errorf("retry %d took the kernel's state for known", i)
			}
		}
		if st := s.Status(); st.Err == nil || st.Behind.IsZero() || st.InForce != 0 {
			t.Errorf("status %+v", st)
		}

		k.meet(nil)
		pass(15 * time.Second)
		if st := s.Status(); st.Err != nil || !st.Behind.IsZero() || st.InForce != 1 {
			t.Errorf("after the fault: status %+v", st)
		}
	})
}

func TestSyncerTriesANewSnapshotSoonThoughItBacksOff(t *testing.T) {
	k := &kernel{fail: errors.New("fault")}
	run(t, k, SyncerConfig{}, func(s *Syncer) {
		s.Submit(snapshot(1))
		pass(time.Minute) // pauses are 10 s now
		k.meet(nil)
		s.Submit(snapshot(2, service("a")))
		pass(pokedBackOff)
		if s.Status().InForce != 2 {
			t.Error("a new Snapshot waited for the old one's pause")
		}
	})
}

// TestSyncerLeavesTheProcessorToOthers: Syncs that go through all that there is
// take a third of the time while they are quick and a fifth when they are not, and at
// most a pause of 1 s keeps a change waiting.
func TestSyncerLeavesTheProcessorToOthers(t *testing.T) {
	for _, c := range []struct {
		takes time.Duration
		most  float64 // part of the time
	}{
		{2 * time.Millisecond, 0.33}, {40 * time.Millisecond, 0.33}, {130 * time.Millisecond, 0.24}, {250 * time.Millisecond, 0.22},
		{680 * time.Millisecond, 0.41}, {3 * time.Second, 0.75},
	} {
		k := &kernel{takes: c.takes, traits: Traits{CostGrows: true}}
		run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
			const during = 2 * time.Minute
			for i := range int(during / (10 * time.Millisecond)) {
				s.Submit(snapshot(uint64(i+1), service("a")))
				pass(10 * time.Millisecond)
			}
			busy := float64(k.count()) * float64(c.takes) / float64(during)
			if busy > c.most*1.05 || busy < c.most/2 {
				t.Errorf("Syncs of %v take %.0f %% of the time; want %.0f %%", c.takes, 100*busy, 100*c.most)
			}
		})
	}
}

// A Backend that fails and takes long to do so is not tried with each change.
func TestSyncerBacksOffFromLongFailures(t *testing.T) {
	for _, c := range []struct {
		takes time.Duration
		most  int // Syncs in 100 s
	}{{10 * time.Millisecond, 110}, {time.Second, 20}} {
		k := &kernel{takes: c.takes, fail: errors.New("fault")}
		run(t, k, SyncerConfig{}, func(s *Syncer) {
			for i := range 1000 {
				s.Submit(snapshot(uint64(i+1), service("a")))
				pass(100 * time.Millisecond)
			}
			if n := k.count(); n > c.most || n < 5 {
				t.Errorf("failures take %v: %d Syncs in 100 s; want at most %d", c.takes, n, c.most)
			}
		})
	}
}

func TestSyncerReadsTheKernelBackEveryAuditInterval(t *testing.T) {
	k := &kernel{}
	run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a")))
		pass(10 * time.Minute)
		if n := len(k.syncs); n < 10 || n > 11 {
			t.Errorf("%d Syncs in 10 minutes", n)
		}
		for i, c := range k.syncs {
			if !c.readBack {
				t.Errorf("Sync %d was no audit", i)
			}
		}
	})
}

func TestSyncerKeepsARefusedServiceFromHoldingUpTheRest(t *testing.T) {
	good, bad := service("good"), service("bad")
	k := &kernel{refuse: map[string]bool{"bad": true}}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.Submit(snapshot(1, good, bad))
		pass(0)
		if st := s.Status(); st.Err != nil || st.InForce != 0 || len(st.Refused) != 1 || st.Refused[0].ID != bad.ID {
			t.Errorf("a refused Service is hidden: %+v", st)
		}
		if st := s.Status(); !st.Behind.IsZero() || st.Served != 1 {
			t.Errorf("the others count as not programmed: %+v", st)
		}
		// While it waits, others are programmed without it, as changes.
		pass(20 * time.Second)
		seen := len(k.syncs)
		for i := range 10 {
			s.Submit(snapshot(uint64(i+2), good, bad, service("new")))
			pass(50 * time.Millisecond)
		}
		without := 0
		for _, c := range k.syncs[seen:] {
			if c.readBack {
				t.Error("a refused Service made the Syncer read the whole kernel back")
			}
			if !slices.Contains(c.services, "bad") {
				without++
			}
			if !slices.Contains(c.services, "new") {
				t.Errorf("a Sync lacks the new Service: %v", c.services)
			}
		}
		if without < 9 {
			t.Errorf("the refused Service was tried in %d of 10 Syncs", len(k.syncs)-seen-without)
		}
		// It is tried again without any event, and taken when it can be.
		k.meet(nil)
		pass(40 * time.Second)
		if st := s.Status(); len(st.Refused) > 0 || !st.Behind.IsZero() || !slices.Contains(names(k.holds), "bad") {
			t.Errorf("never taken: %+v, kernel %v", st, names(k.holds))
		}
	})
}

func TestSyncerLeavesARefusedChangeAsItWas(t *testing.T) {
	v1 := service("a")
	v2 := service("a")
	k := &kernel{}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.Submit(snapshot(1, v1))
		pass(0)
		k.meet(nil, "a")
		s.Submit(snapshot(2, v2))
		pass(100 * time.Millisecond)
		s.Submit(snapshot(3, v2, service("b")))
		pass(30 * time.Millisecond)
		if got := k.holds.Ports.Get(v1.ID); got != v1 {
			t.Errorf("while it waits the Service is %p in what the Backend is told; want the old %p", got, v1)
		}
		s.Submit(snapshot(4)) // the Service goes: that is no longer its old wish
		pass(time.Second)
		if st := s.Status(); len(st.Refused) > 0 || k.holds.Ports.Len() != 0 {
			t.Errorf("a refused Service that was deleted stays: %+v", st)
		}
	})
}

func TestSyncerTriesARefusedServiceAtOnceWhenItChanges(t *testing.T) {
	k := &kernel{refuse: map[string]bool{"a": true}}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a")))
		pass(time.Minute)
		k.meet(nil)
		s.Submit(snapshot(2, service("a")))
		pass(30 * time.Millisecond)
		if st := s.Status(); st.InForce != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSyncerReports(t *testing.T) {
	k := &kernel{takes: 3 * time.Millisecond}
	var reports []SyncReport
	run(t, k, SyncerConfig{AuditInterval: -1, Report: func(r SyncReport) { reports = append(reports, r) }}, func(s *Syncer) {
		first := snapshot(1, service("a"))
		s.Submit(first)
		pass(time.Second)
		k.meet(errors.New("fault"))
		s.Submit(snapshot(2, service("a")))
		pass(10 * time.Millisecond)
		if len(reports) != 2 {
			t.Fatalf("%d reports", len(reports))
		}
		if r := reports[0]; r.Err != nil || !r.Audit || r.Took != k.takes || r.InForce != first {
			t.Errorf("first report %+v", r)
		}
		if r := reports[1]; r.Err == nil || r.Audit || r.InForce != nil {
			t.Errorf("second report %+v", r)
		}
	})
}

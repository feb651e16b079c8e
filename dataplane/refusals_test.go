package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// refusing is a kernel that refuses n Services, and a Snapshot of them and one
// that it takes.
func refusing(n int) (*kernel, func(revision uint64, more ...*ServicePort) *Snapshot) {
	k := &kernel{refuse: map[string]bool{}}
	all := []*ServicePort{service("good")}
	for i := range n {
		name := fmt.Sprintf("bad-%d", i)
		k.refuse[name] = true
		all = append(all, service(name))
	}
	return k, func(revision uint64, more ...*ServicePort) *Snapshot {
		return snapshot(revision, append(all, more...)...)
	}
}

func TestRefusedServicePortsAreTriedTogether(t *testing.T) {
	for _, n := range []int{1, 10, 1000} {
		k, of := refusing(n)
		run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
			s.Submit(of(1))
			pass(10 * time.Minute)
			if got := len(k.syncs); got < 5 || got > 20 {
				t.Errorf("%d refused: %d Syncs in 10 minutes; want a handful", n, got)
			}
			for i := 6; i < len(k.syncs); i++ {
				if gap := k.syncs[i].at.Sub(k.syncs[i-1].at); gap < 30*time.Second {
					t.Errorf("%d refused: Sync %d came after %v", n, i, gap)
				}
			}
		})
	}
}

func TestRefusedServicePortsAreTriedWhenSomethingMayHaveMadeRoom(t *testing.T) {
	for _, c := range []struct {
		name   string
		then   func(of func(uint64, ...*ServicePort) *Snapshot) *Snapshot
		tried  bool
		within time.Duration
	}{
		{"another Service went", func(of func(uint64, ...*ServicePort) *Snapshot) *Snapshot { return of(2) }, true, time.Second},
		{"another Service has fewer frontends", func(of func(uint64, ...*ServicePort) *Snapshot) *Snapshot {
			small := service("other")
			small.Frontends = nil
			return of(2, small)
		}, true, 31 * time.Second},
		{"another Service came", func(of func(uint64, ...*ServicePort) *Snapshot) *Snapshot {
			return of(2, service("other"), service("third"))
		}, false, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, of := refusing(3)
			other := service("other")
			run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
				s.Submit(of(1, other))
				pass(20 * time.Minute) // pauses are 5 minutes now
				for next := k.count(); k.count() == next; {
					pass(time.Second) // right after a try
				}
				pass(time.Minute)
				k.meet(nil)
				s.Submit(c.then(of))
				pass(c.within)
				if got := len(s.Status().Refused) == 0; got != c.tried {
					t.Errorf("tried again: %v; want %v", got, c.tried)
				}
			})
		})
	}
}

// Many Services that come and go do not have the refused ones tried with each.
func TestRoomThatIsMadeOftenIsTriedNowAndThen(t *testing.T) {
	k, of := refusing(3)
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		tries := 0
		s.cfg.Report = func(r SyncReport) {
			if len(r.Tried) > 0 {
				tries++
			}
		}
		for i := range 600 { // one comes or goes each 100 ms, for a minute
			if i%2 == 0 {
				s.Submit(of(uint64(i+1), service("other")))
			} else {
				s.Submit(of(uint64(i + 1)))
			}
			pass(100 * time.Millisecond)
		}
		if tries > 20 {
			t.Errorf("the refused Services were tried %d times in a minute", tries)
		}
	})
}

// A repair may be refused what was accepted before, in the very same form: status
// says so for as long as it is so.
func TestRepairThatIsRefused(t *testing.T) {
	k, of := refusing(1)
	k.meet(nil)
	k.whole = true
	run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
		s.Submit(of(1))
		pass(time.Second)
		k.meet(nil, "bad-0")
		k.drift("a rule is missing")
		pass(10 * time.Minute)
		if got := len(s.Status().Refused); got != 1 {
			t.Errorf("%d Service ports are refused; want the one that the kernel does not take", got)
		}
		k.meet(nil)
		pass(10 * time.Minute)
		if got := len(s.Status().Refused); got != 0 {
			t.Errorf("%d Service ports are refused after the kernel took all", got)
		}
	})
}

// A Service that is refused for a moment waits as long beside one that has been
// refused for long as it does alone.
func TestANewRefusalHasPausesOfItsOwn(t *testing.T) {
	for _, old := range []int{0, 1, 1000} {
		k, of := refusing(old)
		run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
			s.Submit(of(1))
			pass(20 * time.Minute)
			for last := k.count(); old > 0 && k.count() == last; {
				pass(time.Second) // right after a try
			}
			bad := []string{"new"}
			for i := range old {
				bad = append(bad, fmt.Sprintf("bad-%d", i))
			}
			k.meet(nil, bad...)
			s.Submit(of(2, service("new")))
			pass(100 * time.Millisecond)
			k.meet(nil, bad[1:]...)
			pass(10 * time.Second)
			if got := len(s.Status().Refused); got != old {
				t.Errorf("%d old refusals: %d Service ports are refused ten seconds after the new one's cause was over", old, got)
			}
		})
	}
}

// A refused Service whose address family is left alone is tried when the family
// is, and causes no Sync until then.
func TestARefusalWaitsForItsFamily(t *testing.T) {
	k := &kernel{whole: true, refuse: map[string]bool{"bad": true}}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a"), in6("bad")))
		pass(100 * time.Millisecond)
		k.mu.Lock()
		k.failTakes = time.Minute // its family waits for 20 minutes
		k.mu.Unlock()
		k.breakIn6(errors.New("fault"))
		s.Submit(snapshot(2, service("a"), in6("bad"), in6("b")))
		pass(2 * time.Minute)
		before := k.count()
		pass(10 * time.Minute)
		if n := k.count() - before; n > 0 {
			t.Errorf("%d Syncs while the family is left alone", n)
		}
		k.breakIn6(nil)
		k.meet(nil)
		pass(20 * time.Minute)
		if st := s.Status(); len(st.Refused) > 0 || len(st.Failing) > 0 {
			t.Errorf("after the fault: %+v", st)
		}
	})
}

func TestOnlyNewRefusalsAreLogged(t *testing.T) {
	k, of := refusing(1000)
	var log bytes.Buffer
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		s.Submit(of(1))
		pass(time.Hour)
		if n := strings.Count(log.String(), "\n"); n != 1 || log.Len() > 1000 {
			t.Errorf("%d lines, %d bytes; want one line: %s", n, log.Len(), log.String())
		}
		k.meet(nil)
		pass(10 * time.Minute)
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines after all were taken; want one more: %s", n, log.String())
		}
	})
}

// What the kernel refuses keeps nobody from learning that it serves all else.
func TestReportsOfARefusal(t *testing.T) {
	k, of := refusing(2)
	var reports []SyncReport
	run(t, k, SyncerConfig{AuditInterval: -1, Report: func(r SyncReport) { reports = append(reports, r) }}, func(s *Syncer) {
		s.Submit(of(1))
		pass(100 * time.Millisecond)
		s.Submit(of(2, service("new")))
		pass(100 * time.Millisecond)
		if len(reports) != 2 {
			t.Fatalf("%d reports", len(reports))
		}
		for i, want := range []struct {
			served         uint64
			refused, tried int
		}{{1, 2, 2}, {2, 2, 0}} {
			if r := reports[i]; r.Err != nil || r.Served != want.served || len(r.Refused) != want.refused || len(r.Tried) != want.tried {
				t.Errorf("report %d: error %v, served %d, %d refused, %d tried; want %+v", i, r.Err, r.Served, len(r.Refused), len(r.Tried), want)
			}
		}
		if st := s.Status(); st.Served != 2 || st.LastSync.IsZero() {
			t.Errorf("status %+v", st)
		}
	})
}

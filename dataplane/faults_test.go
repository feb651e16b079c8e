package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// in6 is a Service of IPv6.
func in6(name string) *ServicePort {
	return &ServicePort{
		ID:        PortID{Namespace: "ns", Service: name, Protocol: TCP, Family: IPv6},
		Frontends: []Frontend{{Kind: ClusterIP, Addr: netip.MustParseAddrPort("[fd00::1]:80"), Pool: &Pool{}}},
	}
}

// brokenIn6 is a kernel in which IPv6 cannot be programmed.
func brokenIn6() *kernel {
	return &kernel{whole: true, fails: map[Family]error{IPv6: errors.New("table nat is incompatible")}}
}

func TestAFamilyThatFailsDoesNotStopTheOther(t *testing.T) {
	for _, refuse := range []string{"", "bad"} {
		k := brokenIn6()
		k.refuse = map[string]bool{refuse: true}
		var last SyncReport
		run(t, k, SyncerConfig{Report: func(r SyncReport) { last = r }}, func(s *Syncer) {
			s.Submit(snapshot(1, service("a"), service("bad"), in6("a")))
			pass(time.Minute)
			changed := service("a")
			s.Submit(snapshot(2, changed, service("b"), in6("a"), in6("b")))
			pass(100 * time.Millisecond)
			st := s.Status()
			if !st.Behind.IsZero() || st.Served != 0 || len(st.Failing) != 1 || st.Failing[0].Family != IPv6 {
				t.Errorf("status %+v; want IPv6 alone to fail", st)
			}
			if last.InForce == nil || last.InForce.Ports.Get(changed.ID) != changed || last.InForce.Ports.Get(service("b").ID) == nil {
				t.Error("what is in force lacks changes of IPv4")
			}
			if last.InForce.Ports.Get(in6("a").ID) != nil {
				t.Error("what is in force has what was never programmed")
			}
		})
	}
}

// What is in force of a family that fails is what was last known.
func TestAFamilyThatFailsIsAsLastKnown(t *testing.T) {
	k := &kernel{whole: true}
	var last SyncReport
	run(t, k, SyncerConfig{Report: func(r SyncReport) { last = r }}, func(s *Syncer) {
		old := in6("a")
		s.Submit(snapshot(1, service("a"), old))
		pass(time.Second)
		k.breakIn6(errors.New("fault"))
		s.Submit(snapshot(2, service("a"), in6("a"), in6("b")))
		pass(time.Second)
		if got := names(last.InForce); last.InForce.Ports.Get(old.ID) != old || len(got) != 2 {
			t.Errorf("in force are %v", got)
		}
		k.breakIn6(nil)
		pass(faultMost * 2)
		if st := s.Status(); st.InForce != 2 || len(st.Failing) > 0 || st.Err != nil || k.holds.Ports.Len() != 3 {
			t.Errorf("after the fault: %+v, %d ports", st, k.holds.Ports.Len())
		}
	})
}

func TestAFamilyThatFailsIsTriedInGrowingPauses(t *testing.T) {
	k := brokenIn6()
	k.failTakes = 3 * time.Second // while it is tried the other family waits
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		for i := range 600 {
			s.Submit(snapshot(uint64(i+1), service("a"), in6("a")))
			pass(time.Second)
		}
		tries := 0
		for i, c := range k.syncs {
			if !slices.Contains(c.hold, IPv6) {
				tries++
			}
			if i > 0 && c.readBack {
				t.Error("the family that works was read back")
			}
		}
		if most := 600/(20*3) + 2; tries > most {
			t.Errorf("IPv6 was tried %d times in 10 minutes; want at most %d", tries, most)
		}
		if len(k.syncs) < 500 {
			t.Errorf("%d Syncs for 600 changes of IPv4", len(k.syncs))
		}
	})
}

func TestAFamilyThatFailsIsNoDrift(t *testing.T) {
	k := brokenIn6()
	run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a"), in6("a")))
		pass(10 * time.Minute)
		if d := s.Drift(); d.Repairs > 0 || d.Checks < 5 {
			t.Errorf("drift %+v", d)
		}
		v, err := s.Verify(context.Background(), false)
		if err != nil || len(v.Differences) != 1 {
			t.Errorf("on request: %+v, %v; want that IPv6 is not programmed", v, err)
		}
	})
}

// breakIn6 makes IPv6 fail, or work again.
func (k *kernel) breakIn6(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = map[Family]error{IPv6: err}
}

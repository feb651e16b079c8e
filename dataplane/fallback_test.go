package dataplane

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// at is a Service with frontends at some addresses.
func at(name string, addrs ...string) *ServicePort {
	p := service(name)
	p.Frontends = nil
	for _, a := range addrs {
		p.Frontends = append(p.Frontends, Frontend{Kind: LoadBalancer, Addr: netip.MustParseAddrPort(a), Pool: &Pool{}})
	}
	return p
}

func TestFallback(t *testing.T) {
	const x, y, z = "10.97.0.1:80", "10.97.0.2:80", "10.97.0.3:80"
	for _, c := range []struct {
		name     string
		old, new *ServicePort
		want     int // frontends; 0: nothing stays
	}{
		{"there was none", nil, at("a", x), 0},
		{"the same frontends", at("a", x), at("a", x), 1},
		{"more frontends", at("a", x), at("a", x, y), 1},
		{"one was given up", at("a", x, y), at("a", y, z), 1},
		{"all were given up", at("a", x), at("a", y), 0},
	} {
		got := Fallback(c.old, c.new)
		switch {
		case got == nil && c.want > 0, got != nil && len(got.Frontends) != c.want:
			t.Errorf("%s: %v stays", c.name, got)
		case got != nil && len(got.Frontends) == len(c.old.Frontends) && got != c.old:
			t.Errorf("%s: a copy stays", c.name)
		}
	}
}

// TestRefusedKeepsNoAddressOfOthers: a Service that is refused as it moves to
// another address keeps none that was given to another Service.
func TestRefusedKeepsNoAddressOfOthers(t *testing.T) {
	const x, y = "10.97.0.1:80", "10.97.0.2:80"
	k := &kernel{}
	run(t, k, SyncerConfig{AuditInterval: -1}, func(s *Syncer) {
		s.Submit(snapshot(1, at("a", x)))
		pass(time.Second)
		k.mu.Lock()
		k.refuse = map[string]bool{"a": true}
		k.mu.Unlock()
		s.Submit(snapshot(2, at("a", y), at("b", x)))
		pass(time.Hour)
		seen := map[netip.AddrPort]string{}
		for p := range s.inForce.Ports.All() {
			for _, f := range p.Frontends {
				if other, ok := seen[f.Addr]; ok {
					t.Errorf("%s is of %s and %s", f.Addr, other, p.ID.Service)
				}
				seen[f.Addr] = p.ID.Service
			}
		}
		if seen[netip.MustParseAddrPort(x)] != "b" {
			t.Errorf("frontends in force: %v", seen)
		}
	})
}

// TestDamageStaysKnown: a repair that fails for the damaged family is none.
func TestDamageStaysKnown(t *testing.T) {
	k := &kernel{whole: true}
	run(t, k, SyncerConfig{AuditInterval: time.Minute}, func(s *Syncer) {
		s.Submit(snapshot(1, service("a")))
		pass(time.Second)
		k.mu.Lock()
		k.drifted = []string{"IPv4: the jump is gone"}
		k.fails = map[Family]error{IPv4: errors.New("fault")}
		k.mu.Unlock()
		pass(61 * time.Second)
		if st := s.Status(); st.Damaged.IsZero() {
			t.Errorf("the damage is forgotten: %+v", st)
		}
		if d := s.Drift(); d.Repairs != 0 {
			t.Errorf("%d repairs are counted", d.Repairs)
		}
		k.mu.Lock()
		k.fails = nil
		k.mu.Unlock()
		pass(10 * time.Minute)
		if st := s.Status(); !st.Damaged.IsZero() {
			t.Errorf("damaged after the repair: %+v", st)
		}
	})
}

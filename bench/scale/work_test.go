package scale

import (
	"testing"
	"time"
)

// TestSpending: short turns go on until there are enough, long ones until the time
// is up, and none where one did not end.
func TestSpending(t *testing.T) {
	for _, c := range []struct {
		name  string
		turn  time.Duration
		late  bool
		turns int
	}{
		{"very short", 500 * time.Millisecond, false, 10},
		{"short", 1500 * time.Millisecond, false, 6},
		{"long", 2 * time.Second, false, 3},
		{"longer than all there is", time.Minute, false, 1},
		{"it did not end", time.Second, true, 1},
	} {
		s := spending{budget: 5 * time.Second}
		for !s.all() {
			s.took, s.turns, s.late = s.took+c.turn, s.turns+1, c.late
		}
		if s.turns != c.turns {
			t.Errorf("%s: %d turns; want %d", c.name, s.turns, c.turns)
		}
	}
}

// TestPulse: a proxy is not told of the endpoint that it followed last.
func TestPulse(t *testing.T) {
	p := pulse{id: lastPulse}
	for _, c := range []struct{ followed, next byte }{
		{0, firstPulse}, {firstPulse + 1, firstPulse + 2}, {lastPulse, firstPulse + 3},
	} {
		if got := p.next(&player{pulse: c.followed}); got != c.next {
			t.Errorf("after %d comes %d; want %d", c.followed, got, c.next)
		}
	}
}

// TestWaves: two generations have ids of their own, which no pulse has.
func TestWaves(t *testing.T) {
	seen := map[byte]bool{}
	for _, g := range []byte{0, 1} {
		r := rollout{generation: g}
		for n := range waves {
			id := r.wave(n, false)
			if seen[id] || id <= lastPulse || (&rollout{generation: 1 - g}).wave(n, true) != id {
				t.Errorf("wave %d of generation %d has the id %d", n, g, id)
			}
			seen[id] = true
		}
	}
}

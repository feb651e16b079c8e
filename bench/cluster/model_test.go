package cluster

import (
	"math"
	"math/rand/v2"
	"testing"
)

// grid is loads as a run has them.
func grid() []Load {
	var all []Load
	for _, agents := range []float64{0, 50, 100, 200} {
		for _, changes := range []float64{0, 5, 20} {
			all = append(all, Load{agents, changes})
		}
	}
	return all
}

func TestFit(t *testing.T) {
	for _, c := range []struct {
		name                                         string
		base, perChange, perAgent, perAgentAndChange float64
		noise                                        float64
	}{
		{"exact", 0.02, 0.003, 0.0001, 0.00003, 0},
		{"bytes", 100, 0, 300, 2100, 0},
		{"only changes that agents are told of", 0, 0, 0, 0.00003, 0},
		{"noise", 0.02, 0.003, 0.0001, 0.00003, 0.002},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			at := grid()
			cost := make([]float64, len(at))
			for i, l := range at {
				cost[i] = c.base + c.perChange*l.Changes + c.perAgent*l.Agents + c.perAgentAndChange*l.Agents*l.Changes + c.noise*random.NormFloat64()
			}
			m, err := Fit(c.name, "", at, cost)
			if err != nil {
				t.Fatal(err)
			}
			far := Load{15_000, 100}
			want := c.base + c.perChange*far.Changes + c.perAgent*far.Agents + c.perAgentAndChange*far.Agents*far.Changes
			if off := math.Abs(m.At(far) - want); off > m.Margin(far)+1e-6*want {
				t.Errorf("at %+v: %g ± %g; want %g", far, m.At(far), m.Margin(far), want)
			}
			if c.noise > 0 && (m.Residual < c.noise/2 || m.Residual > 2*c.noise) {
				t.Errorf("residual %g; want about %g", m.Residual, c.noise)
			}
			if c.noise == 0 && m.R2 < 0.999 {
				t.Errorf("R² %g; want 1", m.R2)
			}
		})
	}
}

func TestFitLeavesOutWhatIsBelowZero(t *testing.T) {
	at := grid()
	cost := make([]float64, len(at))
	for i, l := range at {
		cost[i] = l.Agents*l.Changes - 0.1*l.Agents
	}
	m, err := Fit("something", "", at, cost)
	if err != nil {
		t.Fatal(err)
	}
	if m.PerAgent != 0 || m.PerAgentAndChange < 0.9 {
		t.Errorf("an agent costs %g, a change that it is told of %g; want 0 and about 1", m.PerAgent, m.PerAgentAndChange)
	}
}

func TestFitRefuses(t *testing.T) {
	for name, at := range map[string][]Load{
		"few points": grid()[:3],
		"one place":  make([]Load, 12),
	} {
		if m, err := Fit(name, "", at, make([]float64, len(at))); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestMost(t *testing.T) {
	m := Model{Base: 10, PerChange: 1, PerAgent: 2, PerAgentAndChange: 0.5}
	for _, c := range []struct{ limit, changes, want float64 }{
		{110, 0, 50},
		{110, 10, 90.0 / 7},
		{5, 0, 0},
	} {
		if got := m.Most(c.limit, c.changes); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("limit %g at %g changes: %g; want %g", c.limit, c.changes, got, c.want)
		}
	}
	if got := (&Model{Base: 1}).Most(5, 1); !math.IsInf(got, 1) {
		t.Errorf("agents that cost nothing: %g", got)
	}
}

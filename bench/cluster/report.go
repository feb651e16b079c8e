package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/bench/result"
)

// What makes a storm.
const (
	Start   = "start"   // of all proxies at once
	Restart = "restart" // of the API server
)

// Report is all that one run measured.
type Report struct {
	Version             string // of Switchyard
	Started             time.Time
	Took                time.Duration
	Machine             result.Machine
	Services, Endpoints int
	Cores               float64 // of the API server whose limit is told
	Kinds               []string
	Windows             []Window
	Storms              []Storm
	Models              []Models
}

// Window is what so many proxies cost at so many changes a second.
type Window struct {
	Kind                        string // empty: no proxy
	Agents                      int
	Asked, Changes              float64 // a second: asked for, and made
	CPU                         float64 // of the API server, in cores
	Sent, Received              float64 // by the API server, bytes a second
	ProxiesCPU, ProxiesResident float64 // of all of them
	Lag                         *Lag    // nil: not known
}

// Lag is the time from the request for a change to a proxy's Sync of it, over all
// changes and proxies, in ms.
type Lag struct {
	P50, P99, Most float64
	Missing        int // changes that a proxy had not synced when the window ended
}

// Storm is what it costs that all proxies ask for everything at once.
type Storm struct {
	Kind           string // empty: no proxy
	What           string
	Agents         int
	Down           float64 // s until the API server is ready again
	Synced         float64 // s from then on, or from the start, until all have synced; 0: not known
	CPU            float64 // s, of the API server
	Sent, Received float64 // bytes
	Peak           float64 // memory of the API server since its own start, bytes
	ProxiesPeak    float64
}

// Models is what a kind of proxies costs, as a function of their number. Nil means
// that too few were measured.
type Models struct {
	Kind                    string
	CPU, Sent, Received     *Model // a second
	StartCPU, StartSent     *Model
	RestartCPU, RestartSent *Model
	RestartPeak             *Model
}

// fit makes the Models of each kind. What was measured without any proxy counts for
// all of them.
func (r *Report) fit() {
	for _, kind := range r.Kinds {
		m := Models{Kind: kind}
		window := func(what, unit string, of func(Window) float64) *Model {
			return fitted(what, unit, r.Windows, func(w Window) (Load, float64, bool) {
				return Load{float64(w.Agents), w.Changes}, of(w), w.Kind == kind || w.Agents == 0
			})
		}
		m.CPU = window("CPU", "cores", func(w Window) float64 { return w.CPU })
		m.Sent = window("sent", "B/s", func(w Window) float64 { return w.Sent })
		m.Received = window("received", "B/s", func(w Window) float64 { return w.Received })
		storm := func(what, unit, storm string, of func(Storm) float64) *Model {
			return fitted(storm+": "+what, unit, r.Storms, func(s Storm) (Load, float64, bool) {
				return Load{Agents: float64(s.Agents)}, of(s), s.What == storm && (s.Kind == kind || s.Agents == 0)
			})
		}
		cpu, sent, peak := func(s Storm) float64 { return s.CPU }, func(s Storm) float64 { return s.Sent }, func(s Storm) float64 { return s.Peak }
		m.StartCPU, m.StartSent = storm("CPU", "s", Start, cpu), storm("sent", "B", Start, sent)
		m.RestartCPU, m.RestartSent, m.RestartPeak = storm("CPU", "s", Restart, cpu), storm("sent", "B", Restart, sent), storm("peak of memory", "B", Restart, peak)
		r.Models = append(r.Models, m)
	}
}

// all returns the Models that there are.
func (m *Models) all() []*Model {
	all := []*Model{m.CPU, m.Sent, m.Received, m.StartCPU, m.StartSent, m.RestartCPU, m.RestartSent, m.RestartPeak}
	return slices.DeleteFunc(all, func(m *Model) bool { return m == nil })
}

// fitted fits a Model to some of what was measured.
func fitted[T any](what, unit string, measured []T, point func(T) (Load, float64, bool)) *Model {
	var at []Load
	var cost []float64
	for _, t := range measured {
		if l, c, counts := point(t); counts {
			at, cost = append(at, l), append(cost, c)
		}
	}
	m, err := Fit(what, unit, at, cost)
	if err != nil {
		return nil
	}
	return m
}

// Write writes the report to a file, as JSON.
func (r *Report) Write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

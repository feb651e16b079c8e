package status

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The stages of an agent's start, in their order. Together they take as long as
// the start does.
const (
	stageOpen    = "open"    // the backend
	stageList    = "list"    // waiting for what the API server sends
	stageDecode  = "decode"  // making facts of that
	stageBuild   = "build"   // the first Snapshot
	stageProgram = "program" // the kernel
)

// start notes when an agent's start reached which point; zero: it has not.
type start struct {
	opened time.Time

	mu                sync.Mutex
	built, programmed time.Time
}

// note notes that a point is reached, if that is the first time.
func (s *start) note(point *time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if point.IsZero() {
		*point = time.Now()
	}
}

// CountStart makes the metric of how long each stage of the start took. listed
// returns when the first lists of objects were complete, and how long nothing came
// from the API server on the way there; zero: they are not complete.
func (m *Metrics) CountStart(began time.Time, listed func() (end time.Time, waited time.Duration)) {
	m.registry.MustRegister(stages{&m.start, began, listed})
}

// stages implements prometheus.Collector.
type stages struct {
	*start
	began  time.Time
	listed func() (time.Time, time.Duration)
}

func (stages) desc() *prometheus.Desc {
	return prometheus.NewDesc(ownNamespace+"_start_seconds", "How long the agent took to start, by stage.", []string{"stage"}, nil)
}

// Describe implements prometheus.Collector.
func (s stages) Describe(ch chan<- *prometheus.Desc) { ch <- s.desc() }

// Collect implements prometheus.Collector. It leaves out stages that are not over.
func (s stages) Collect(ch chan<- prometheus.Metric) {
	took := func(stage string, d time.Duration) {
		ch <- prometheus.MustNewConstMetric(s.desc(), prometheus.GaugeValue, d.Seconds(), stage)
	}
	s.mu.Lock()
	built, programmed := s.built, s.programmed
	s.mu.Unlock()
	took(stageOpen, s.opened.Sub(s.began))
	listed, waited := s.listed()
	if listed.IsZero() {
		return
	}
	took(stageList, waited)
	took(stageDecode, listed.Sub(s.opened)-waited)
	if !built.IsZero() {
		took(stageBuild, built.Sub(listed))
	}
	if !programmed.IsZero() {
		took(stageProgram, programmed.Sub(built))
	}
}

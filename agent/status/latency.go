package status

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/switchyard-io/switchyard/dataplane"
)

// latency measures network programming latency: from a change of a Service's
// pods or of the Service to the kernel that forwards it (KUBE-PROXY §2.4).
type latency struct {
	histogram *prometheus.HistogramVec
	started   time.Time

	mu      sync.Mutex
	pending map[dataplane.Family][]pendingChange // by revision
}

type pendingChange struct {
	revision uint64
	triggers []time.Time
}

// latencyMostPending bounds what is kept while the kernel cannot be programmed.
const latencyMostPending = 10_000

func newLatency(families []dataplane.Family) *latency {
	l := &latency{
		pending: map[dataplane.Family][]pendingChange{},
		started: time.Now(),
		histogram: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "network_programming_duration_seconds",
			Help:    "Time from a change, as its EndpointSlice tells it, to the kernel that forwards it.",
			Buckets: latencyBuckets(),
		}, []string{"ip_family"}),
	}
	for _, f := range families {
		l.pending[f] = nil
	}
	return l
}

// latencyBuckets are kube-proxy's.
func latencyBuckets() []float64 {
	b := []float64{0.25, 0.5}
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

// wanted notes the changes that a Snapshot brings. Those from before the
// process started say nothing of it.
func (l *latency) wanted(revision uint64, triggers []time.Time) {
	var fresh []time.Time
	for _, t := range triggers {
		if t.After(l.started) {
			fresh = append(fresh, t)
		}
	}
	if len(fresh) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, pending := range l.pending {
		if len(pending) < latencyMostPending {
			l.pending[f] = append(pending, pendingChange{revision, fresh})
		}
	}
}

// inForce notes that the kernel forwards a revision, and with it all before, in a
// family. What it refuses does not count.
func (l *latency) inForce(revision uint64, f dataplane.Family) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	pending := l.pending[f]
	for len(pending) > 0 && pending[0].revision <= revision {
		for _, t := range pending[0].triggers {
			l.histogram.WithLabelValues(f.String()).Observe(now.Sub(t).Seconds())
		}
		pending = pending[1:]
	}
	l.pending[f] = pending
}

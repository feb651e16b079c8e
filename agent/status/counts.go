package status

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/switchyard-io/switchyard/dataplane"
)

// CountBackend makes metrics of what a backend counts, if it does.
func (m *Metrics) CountBackend(log *slog.Logger, backend any) {
	if c, ok := backend.(dataplane.Counter); ok {
		m.registry.MustRegister(counts{log, c})
	}
}

// counts asks a backend when it is asked itself. It implements
// prometheus.Collector, and says nothing before of what there will be.
type counts struct {
	log     *slog.Logger
	backend dataplane.Counter
}

// Describe implements prometheus.Collector.
func (counts) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c counts) Collect(ch chan<- prometheus.Metric) {
	all, err := c.backend.Counts()
	if err != nil {
		c.log.Warn("the backend's counters cannot be read", "error", err)
		return
	}
	for _, n := range all {
		var names, values []string
		for _, l := range n.Labels {
			names, values = append(names, l.Name), append(values, l.Value)
		}
		kind := prometheus.GaugeValue
		if n.Grows {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(n.Name, n.Help, names, nil), kind, n.Value, values...)
	}
}

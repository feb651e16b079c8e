package status

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientmetrics "k8s.io/client-go/tools/metrics"
)

// CountAPIRequests makes the metrics of requests to the API server, with the
// names, labels and buckets of Kubernetes' components. client-go tells one
// listener of a process: the first Metrics on which this is called.
//
// Theirs are in component-base, which registers them with a registry of the
// process as it is loaded.
func (m *Metrics) CountAPIRequests() {
	seconds := []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}
	bytes := []float64{64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "rest_client", Name: name, Help: help, Buckets: buckets},
			[]string{"verb", "host"})
		m.registry.MustRegister(v)
		return v
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rest_client", Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	clientmetrics.Register(clientmetrics.RegisterOpts{
		RequestLatency: latencyOf{histogram("request_duration_seconds", "Time of requests to the API server.", seconds)},
		RateLimiterLatency: latencyOf{histogram("rate_limiter_duration_seconds",
			"Time that requests to the API server waited for their turn.", seconds)},
		RequestSize:   sizeOf{histogram("request_size_bytes", "Size of requests to the API server.", bytes)},
		ResponseSize:  sizeOf{histogram("response_size_bytes", "Size of the API server's answers.", bytes)},
		RequestResult: resultOf{counter("requests_total", "Requests to the API server, by HTTP status.", "code", "method", "host")},
		RequestRetry:  retryOf{counter("request_retries_total", "Requests to the API server that were sent again.", "code", "verb", "host")},
	})
}

type (
	latencyOf struct{ *prometheus.HistogramVec }
	sizeOf    struct{ *prometheus.HistogramVec }
	resultOf  struct{ *prometheus.CounterVec }
	retryOf   struct{ *prometheus.CounterVec }
)

func (v latencyOf) Observe(_ context.Context, verb string, u url.URL, took time.Duration) {
	v.WithLabelValues(verb, u.Host).Observe(took.Seconds())
}

func (v sizeOf) Observe(_ context.Context, verb, host string, size float64) {
	v.WithLabelValues(verb, host).Observe(size)
}

func (v resultOf) Increment(_ context.Context, code, method, host string) {
	v.WithLabelValues(code, method, host).Inc()
}

func (v retryOf) IncrementRetry(_ context.Context, code, method, host string) {
	v.WithLabelValues(code, method, host).Inc()
}

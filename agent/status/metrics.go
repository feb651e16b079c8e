package status

import (
	"errors"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/switchyard-io/switchyard/dataplane"
)

// namespace is kube-proxy's, so that its dashboards and alerts go on working
// (KUBE-PROXY §2.4). What only Switchyard has is under ownNamespace.
const (
	namespace    = "kubeproxy"
	ownNamespace = "switchyard"
)

// Metrics is all that the agent counts.
type Metrics struct {
	registry *prometheus.Registry
	families []dataplane.Family
	inForce  atomic.Pointer[dataplane.Snapshot]
	latency  *latency
	start    start

	syncDuration, fullDuration, partialDuration *prometheus.HistogramVec
	lastSync, lastQueued                        *prometheus.GaugeVec
	conntrackDuration                           *prometheus.HistogramVec
	conntrackDeleted                            *prometheus.CounterVec
	healthz, livez                              *prometheus.CounterVec
	syncErrors                                  *prometheus.CounterVec
	refused, failing                            *prometheus.GaugeVec
	ownDuration                                 *prometheus.HistogramVec

	changes                        func() (services, slices uint64) // seen so far
	servicesInForce, slicesInForce atomic.Uint64                    // of those, in the kernel
}

// NewMetrics makes the metrics of an agent that programs these families with a
// backend.
func NewMetrics(version, backend string, families []dataplane.Family) *Metrics {
	reg := prometheus.NewRegistry()
	m := &Metrics{registry: reg, families: families, latency: newLatency(families), start: start{opened: time.Now()}}
	perFamily := []string{"ip_family"}
	seconds := prometheus.ExponentialBuckets(0.001, 2, 15)
	histogram := func(name, help string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: seconds}, perFamily)
		reg.MustRegister(v)
		return v
	}
	gauge := func(ns, name, help string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: name, Help: help}, perFamily)
		reg.MustRegister(v)
		return v
	}
	counter := func(ns, name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}

	m.syncDuration = histogram("sync_proxy_rules_duration_seconds", "Time of one Sync of the kernel.")
	m.fullDuration = histogram("sync_full_proxy_rules_duration_seconds", "Time of one Sync that read the kernel back.")
	m.partialDuration = histogram("sync_partial_proxy_rules_duration_seconds", "Time of one Sync of just what changed.")
	m.lastSync = gauge(namespace, "sync_proxy_rules_last_timestamp_seconds", "When the kernel last agreed with what is wanted.")
	m.lastQueued = gauge(namespace, "sync_proxy_rules_last_queued_timestamp_seconds", "When something was last wanted anew.")
	m.conntrackDuration = histogram("conntrack_reconciler_sync_duration_seconds", "Time of one pass over the conntrack table.")
	m.conntrackDeleted = counter(namespace, "conntrack_reconciler_deleted_entries_total",
		"Conntrack entries deleted because their endpoint is gone.", "ip_family")
	m.healthz = counter(namespace, "proxy_healthz_total", "Answers of /healthz.", "code")
	m.livez = counter(namespace, "proxy_livez_total", "Answers of /livez.", "code")
	m.syncErrors = counter(ownNamespace, "sync_errors_total",
		"Syncs that failed. Refused Service ports are no failure.", "backend", "ip_family")
	m.failing = gauge(ownNamespace, "family_failing_since_timestamp_seconds",
		"Since when a family is not programmed while others are; 0: it is.")
	m.refused = gauge(ownNamespace, "refused_service_ports", "Service ports that the backend cannot program.")
	for _, f := range families {
		m.syncErrors.WithLabelValues(backend, f.String())
		m.refused.WithLabelValues(f.String())
		m.failing.WithLabelValues(f.String())
	}

	for _, f := range families {
		m.latency.histogram.WithLabelValues(f.String()) // dashboards find instances by it, before any change too
	}
	m.ownDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ownNamespace, Name: "sync_duration_seconds",
		Help: "Time of one Sync of the kernel, all families together.", Buckets: seconds}, []string{"backend", "audit"})
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ownNamespace, Name: "build_info",
		Help: "Always 1; the labels tell what runs."}, []string{"version", "backend"})
	info.WithLabelValues(version, backend).Set(1)
	reg.MustRegister(info, m.ownDuration, buildInfo(version), m.latency.histogram, noLocalEndpoints{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Queued notes that something new is wanted.
func (m *Metrics) Queued() {
	for _, f := range m.families {
		m.lastQueued.WithLabelValues(f.String()).SetToCurrentTime()
	}
}

// Programming notes when the changes happened that a Snapshot brings.
func (m *Metrics) Programming(revision uint64, triggers []time.Time) {
	m.latency.wanted(revision, triggers)
	m.start.note(&m.start.built)
}

// buildInfo has the name and the labels of Kubernetes' components; the version
// is Switchyard's.
func buildInfo(version string) prometheus.Collector {
	labels := prometheus.Labels{
		"major": "", "minor": "", "git_version": version, "git_commit": "", "git_tree_state": "", "build_date": "",
		"go_version": runtime.Version(), "compiler": runtime.Compiler, "platform": runtime.GOOS + "/" + runtime.GOARCH,
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				labels["git_commit"] = s.Value
			case "vcs.time":
				labels["build_date"] = s.Value
			case "vcs.modified":
				labels["git_tree_state"] = map[string]string{"true": "dirty", "false": "clean"}[s.Value]
			}
		}
	}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kubernetes_build_info", Help: "Always 1; the labels tell what runs.", ConstLabels: labels,
	}, func() float64 { return 1 })
}

// CountChanges makes the metrics of how many changes of Services and of
// EndpointSlices were seen, from a function that tells. Those that came while
// the kernel was programmed count as being in it a moment too early.
func (m *Metrics) CountChanges(seen func() (services, slices uint64)) {
	m.changes = seen
	for _, c := range []struct {
		name, of string
		seen     func() uint64
		inForce  *atomic.Uint64
	}{
		{"sync_proxy_rules_service_changes", "Services", func() uint64 { n, _ := seen(); return n }, &m.servicesInForce},
		{"sync_proxy_rules_endpoint_changes", "EndpointSlices", func() uint64 { _, n := seen(); return n }, &m.slicesInForce},
	} {
		m.registry.MustRegister(
			prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: c.name + "_total", Help: "Changes of " + c.of + " seen."},
				func() float64 { return float64(c.seen()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: c.name + "_pending",
				Help: "Changes of " + c.of + " that are not in the kernel yet."},
				func() float64 { return float64(c.seen() - min(c.seen(), c.inForce.Load())) }))
	}
}

// ShowPassedOver makes the metric of the backends that are preferred to the one
// that runs and do not work here.
func (m *Metrics) ShowPassedOver(backends []string) {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ownNamespace, Name: "backend_passed_over",
		Help: "Always 1; the label names a backend that is preferred to the one that runs and does not work here."}, []string{"backend"})
	for _, b := range backends {
		v.WithLabelValues(b).Set(1)
	}
	m.registry.MustRegister(v)
}

// ShowFirewall makes the metric of a host's firewall that cannot be opened for
// Services, from a function that returns what is kept open and why some is not.
func (m *Metrics) ShowFirewall(state func() ([]string, error)) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ownNamespace, Name: "host_firewall_failing",
		Help: "1 while the host's firewall could not be looked at, or not opened for Services where it drops what nobody accepts; else 0."},
		func() float64 {
			if _, err := state(); err != nil {
				return 1
			}
			return 0
		}))
}

// CountLeftovers makes the metric of what other backends and kube-proxy left in
// the kernel, from a function that returns it by whose it is.
func (m *Metrics) CountLeftovers(found func() map[string][]string) {
	m.registry.MustRegister(leftovers{found})
}

type leftovers struct{ found func() map[string][]string }

func (leftovers) desc() *prometheus.Desc {
	return prometheus.NewDesc(ownNamespace+"_leftovers",
		"Always 1; the label names a backend that does not run, or kube-proxy, of which rules are in force.", []string{"of"}, nil)
}

// Describe implements prometheus.Collector.
func (l leftovers) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc() }

// Collect implements prometheus.Collector.
func (l leftovers) Collect(ch chan<- prometheus.Metric) {
	for whose := range l.found() {
		ch <- prometheus.MustNewConstMetric(l.desc(), prometheus.GaugeValue, 1, whose)
	}
}

// CountContacts makes the metric of when the source of objects last answered,
// from a function that returns it for each resource. One that never answered is
// left out.
func (m *Metrics) CountContacts(last func() map[string]time.Time) {
	m.registry.MustRegister(contacts{last})
}

type contacts struct{ last func() map[string]time.Time }

func (contacts) desc() *prometheus.Desc {
	return prometheus.NewDesc(ownNamespace+"_source_last_contact_timestamp_seconds",
		"When the API server last answered about a resource.", []string{"resource"}, nil)
}

// Describe implements prometheus.Collector.
func (c contacts) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc() }

// Collect implements prometheus.Collector.
func (c contacts) Collect(ch chan<- prometheus.Metric) {
	for resource, at := range c.last() {
		if !at.IsZero() {
			ch <- prometheus.MustNewConstMetric(c.desc(), prometheus.GaugeValue, float64(at.UnixMilli())/1000, resource)
		}
	}
}

// Gate is a feature gate that the agent heeds.
type Gate struct {
	Name, Stage string // "": generally available
	On          bool
}

// ShowGates makes the metric of feature gates, with the name and the labels of
// Kubernetes' components.
func (m *Metrics) ShowGates(gates []Gate) {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_feature_enabled",
		Help: "Feature gates that are heeded: 1 is on."}, []string{"name", "stage"})
	for _, g := range gates {
		on := 0.0
		if g.On {
			on = 1
		}
		v.WithLabelValues(g.Name, g.Stage).Set(on)
	}
	m.registry.MustRegister(v)
}

// CountDrift makes the metrics of what comparisons of the kernel with what is
// wanted found, from a function that tells.
func (m *Metrics) CountDrift(drift func() dataplane.Drift) {
	for _, c := range []struct {
		name, help string
		count      func(dataplane.Drift) uint64
	}{
		{"drift_checks_total", "Comparisons of the kernel with what is wanted.", func(d dataplane.Drift) uint64 { return d.Checks }},
		{"drift_found_total", "Differences that they found.", func(d dataplane.Drift) uint64 { return d.Found }},
		{"drift_repairs_total", "Comparisons after which the kernel was repaired.", func(d dataplane.Drift) uint64 { return d.Repairs }},
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: ownNamespace, Name: c.name, Help: c.help},
			func() float64 { return float64(c.count(drift())) }))
	}
}

// ShowMissing notes address families that the backend cannot program here.
func (m *Metrics) ShowMissing(families []dataplane.Family, since time.Time) {
	for _, f := range families {
		m.failing.WithLabelValues(f.String()).Set(float64(since.Unix()))
	}
}

// Synced notes a Sync by a backend. The backend programs the families at the
// same time, so each is given the whole of it.
func (m *Metrics) Synced(backend string, r dataplane.SyncReport) {
	for _, f := range m.families {
		m.syncDuration.WithLabelValues(f.String()).Observe(r.Took.Seconds())
		kind := m.partialDuration
		if r.Audit {
			kind = m.fullDuration
		}
		kind.WithLabelValues(f.String()).Observe(r.Took.Seconds())
	}
	m.ownDuration.WithLabelValues(backend, strconv.FormatBool(r.Audit)).Observe(r.Took.Seconds())
	m.countErrors(backend, r.Err)
	if r.InForce == nil {
		return
	}
	m.inForce.Store(r.InForce)
	if len(r.Failing) == 0 {
		m.start.note(&m.start.programmed)
	}
	m.countRefused(r.Refused)
	for _, f := range m.families {
		if i := slices.IndexFunc(r.Failing, func(s dataplane.FamilyStatus) bool { return s.Family == f }); i >= 0 {
			m.failing.WithLabelValues(f.String()).Set(float64(r.Failing[i].Since.Unix()))
			continue
		}
		m.failing.WithLabelValues(f.String()).Set(0)
		m.lastSync.WithLabelValues(f.String()).SetToCurrentTime()
		m.latency.inForce(r.Want.Revision, f)
	}
	if m.changes != nil && len(r.Failing) == 0 {
		services, endpointSlices := m.changes()
		m.servicesInForce.Store(services)
		m.slicesInForce.Store(endpointSlices)
	}
}

// countErrors counts a Sync that failed (err is not nil) for the families that it
// failed for.
func (m *Metrics) countErrors(backend string, err error) {
	var failed *dataplane.FamilyError
	inFamilies := errors.As(err, &failed)
	for _, f := range m.families {
		if err != nil && (!inFamilies || failed.Has(f)) {
			m.syncErrors.WithLabelValues(backend, f.String()).Inc()
		}
	}
}

// countRefused counts the Service ports of each family that are refused.
func (m *Metrics) countRefused(refused []dataplane.PortError) {
	n := map[dataplane.Family]int{}
	for _, r := range refused {
		n[r.ID.Family]++
	}
	for _, f := range m.families {
		m.refused.WithLabelValues(f.String()).Set(float64(n[f]))
	}
}

// ConntrackCleaned notes a pass over one family's conntrack table.
func (m *Metrics) ConntrackCleaned(f dataplane.Family, deleted int, took time.Duration) {
	m.conntrackDuration.WithLabelValues(f.String()).Observe(took.Seconds())
	m.conntrackDeleted.WithLabelValues(f.String()).Add(float64(deleted))
}

// noLocalEndpoints counts, when asked, the Service ports whose policy is Local
// and that have endpoints, but none here (KUBE-PROXY §1.6).
type noLocalEndpoints struct{ m *Metrics }

func (noLocalEndpoints) desc() *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_sync_proxy_rules_no_local_endpoints_total",
		"Service ports with traffic policy Local that have endpoints, but none on this node.",
		[]string{"traffic_policy", "ip_family"}, nil)
}

// Describe implements prometheus.Collector.
func (c noLocalEndpoints) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc() }

// Collect implements prometheus.Collector.
func (c noLocalEndpoints) Collect(ch chan<- prometheus.Metric) {
	type key struct {
		policy string
		family dataplane.Family
	}
	count := map[key]int{}
	for _, f := range c.m.families {
		count[key{"internal", f}], count[key{"external", f}] = 0, 0
	}
	if s := c.m.inForce.Load(); s != nil {
		for p := range s.Ports.All() {
			internal, external := dropping(p)
			if internal {
				count[key{"internal", p.ID.Family}]++
			}
			if external {
				count[key{"external", p.ID.Family}]++
			}
		}
	}
	for k, n := range count {
		ch <- prometheus.MustNewConstMetric(c.desc(), prometheus.GaugeValue, float64(n), k.policy, k.family.String())
	}
}

// dropping reports for which traffic policies a port has no endpoint here but
// has some elsewhere.
func dropping(p *dataplane.ServicePort) (internal, external bool) {
	for i := range p.Frontends {
		f := &p.Frontends[i]
		if len(f.Pool.Endpoints) > 0 || f.Pool.IfEmpty != dataplane.Drop {
			continue
		}
		if f.Kind == dataplane.ClusterIP {
			internal = true
		} else {
			external = true
		}
	}
	return internal, external
}

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/switchyard-io/switchyard/dataplane"
)

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

func TestHealthTellsHowTheKernelStands(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	fault := errors.New("netlink: no buffer space")
	refused := []dataplane.PortError{{ID: dataplane.PortID{Namespace: "shop", Service: "web"}, Err: errors.New("too large")}}
	failing := func(since time.Time) []dataplane.FamilyStatus {
		return []dataplane.FamilyStatus{{Family: dataplane.IPv6, Since: since, Err: fault}}
	}
	for _, c := range []struct {
		name                   string
		sync                   dataplane.SyncStatus
		eligible               bool
		healthz, livez, readyz int
		reason                 string // part of /readyz's
	}{
		{"before Services are known", dataplane.SyncStatus{}, true, 200, 200, 503, "nothing is known yet: waiting for Services"},
		{"the first Sync goes on", dataplane.SyncStatus{Wanted: 1, Behind: ago(time.Second)}, true, 200, 200, 503, "first programming"},
		{"the first Sync failed", dataplane.SyncStatus{Wanted: 1, Behind: ago(time.Second), Err: fault}, true, 200, 200, 503, "no buffer space"},
		{"all is in the kernel", dataplane.SyncStatus{Wanted: 7, InForce: 7, Served: 7, LastSync: ago(time.Hour)}, true, 200, 200, 200, ""},
		{"a change is on its way", dataplane.SyncStatus{Wanted: 8, InForce: 7, Served: 7, Behind: ago(time.Second)}, true, 200, 200, 200, ""},
		{"a failure is being retried", dataplane.SyncStatus{Wanted: 8, InForce: 7, Served: 7, Behind: ago(59 * time.Second), Err: fault}, true, 200, 200, 200, ""},
		{"behind for more than a minute", dataplane.SyncStatus{Wanted: 8, InForce: 7, Served: 7, Behind: ago(61 * time.Second), Err: fault}, true, 503, 503, 503, "no buffer space"},
		{"one Service is refused, from the start on", dataplane.SyncStatus{Wanted: 7, Served: 7, Err: fault, Refused: refused}, true, 200, 200, 200, "shop/web"},
		{"one Service is refused, and the rest is behind", dataplane.SyncStatus{Wanted: 8, Served: 7, Behind: ago(61 * time.Second), Err: fault, Refused: refused}, true, 503, 503, 503, "no buffer space"},
		{"IPv6 was never programmed", dataplane.SyncStatus{Wanted: 7, LastPart: now, Failing: failing(ago(time.Second))}, true, 200, 200, 503, "IPv6 is not programmed"},
		{"IPv6 is being retried", dataplane.SyncStatus{Wanted: 8, InForce: 7, Served: 7, LastPart: now, Failing: failing(ago(59 * time.Second))}, true, 200, 200, 200, "IPv6 is not programmed"},
		{"IPv6 fails for more than a minute", dataplane.SyncStatus{Wanted: 8, InForce: 7, Served: 7, LastPart: now, Failing: failing(ago(61 * time.Second))}, true, 200, 200, 503, "no buffer space"},
		{"somebody else changed the kernel", dataplane.SyncStatus{Wanted: 7, InForce: 7, Served: 7, Damaged: ago(time.Second)}, true, 200, 200, 503, "is being repaired"},
		{"somebody else changed the kernel, and the repair fails", dataplane.SyncStatus{Wanted: 7, InForce: 7, Served: 7, Damaged: ago(61 * time.Second), Behind: ago(61 * time.Second), Err: fault}, true, 503, 503, 503, "no buffer space"},
		{"the node is going away (KEP-3836)", dataplane.SyncStatus{Wanted: 7, InForce: 7, Served: 7}, false, 503, 200, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &Health{
				Families:     both,
				BehindLimit:  time.Minute,
				Sync:         func() dataplane.SyncStatus { return c.sync },
				NodeEligible: func() bool { return c.eligible },
				Waiting:      func() string { return "waiting for Services" },
				Now:          func() time.Time { return now },
			}
			mux := HealthMux(h, NewMetrics("test", "fake", both))
			for path, want := range map[string]int{"/healthz": c.healthz, "/livez": c.livez, "/readyz": c.readyz} {
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				if w.Code != want {
					t.Errorf("%s: %d, want %d: %s", path, w.Code, want, w.Body)
				}
				if path == "/readyz" && !strings.Contains(w.Body.String(), c.reason) {
					t.Errorf("%s says %s, want something with %q", path, w.Body, c.reason)
				}
			}
		})
	}
}

// TestHealthzBody holds the fields that kube-proxy's readers know (KUBE-PROXY §2.3).
func TestHealthzBody(t *testing.T) {
	h := &Health{
		Families:     both,
		BehindLimit:  time.Minute,
		Sync:         func() dataplane.SyncStatus { return dataplane.SyncStatus{InForce: 1, Served: 1} },
		NodeEligible: func() bool { return true },
		Waiting:      func() string { return "" },
		Now:          time.Now,
	}
	for path, eligible := range map[string]bool{"/healthz": true, "/livez": false} {
		w := httptest.NewRecorder()
		HealthMux(h, NewMetrics("test", "fake", both)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		var body map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"lastUpdated", "currentTime", "healthy", "status"} {
			if _, ok := body[field]; !ok {
				t.Errorf("%s lacks %q: %s", path, field, w.Body)
			}
		}
		if _, ok := body["nodeEligible"]; ok != eligible {
			t.Errorf("%s has nodeEligible: %v, want %v", path, ok, eligible)
		}
		if families := body["status"].(map[string]any); len(families) != 2 || families["IPv4"] == nil || families["IPv6"] == nil {
			t.Errorf("%s has the families %v", path, families)
		}
		if got := w.Header().Get("Content-Type"); got != "application/json" {
			t.Errorf("%s is %s", path, got)
		}
	}
}

func TestMetricsHaveKubeProxysNames(t *testing.T) {
	m := NewMetrics("v1", "iptables", both)
	addr := netip.MustParseAddrPort("10.96.0.1:80")
	m.Queued()
	m.Programming(1, []time.Time{time.Now(), time.Now().Add(-time.Hour)}) // the older is from before the start
	m.Programming(2, []time.Time{time.Now()})
	changes := [2]uint64{1, 2}
	m.CountChanges(func() (uint64, uint64) { return changes[0], changes[1] })
	m.CountBackend(slog.New(slog.DiscardHandler), counter{})
	m.CountAPIRequests()
	m.CountDrift(func() dataplane.Drift { return dataplane.Drift{Checks: 9, Found: 4, Repairs: 2} })
	m.CountLeftovers(func() map[string][]string { return map[string][]string{"kube-proxy": {"4 chains"}} })
	listed := time.Now().Add(2 * time.Second)
	m.CountStart(time.Now().Add(-time.Second), func() (time.Time, time.Duration) { return listed, 500 * time.Millisecond })
	m.ShowPassedOver([]string{"ebpf"})
	m.ShowFirewall(func() ([]string, error) { return nil, errors.New("fault") })
	m.CountContacts(func() map[string]time.Time {
		return map[string]time.Time{"Services": time.UnixMilli(1500), "EndpointSlices": {}}
	})
	m.ShowGates([]Gate{{"ComponentFlagz", "BETA", true}, {"AllowServiceExternalIPs", "", false}})
	m.ConntrackCleaned(dataplane.IPv4, 3, time.Millisecond)
	m.Synced("iptables", dataplane.SyncReport{Audit: true, Want: &dataplane.Snapshot{Revision: 1}, Served: 1, InForce: &dataplane.Snapshot{Ports: dataplane.MakePorts(&dataplane.ServicePort{
		ID: dataplane.PortID{Service: "a", Family: dataplane.IPv4},
		Frontends: []dataplane.Frontend{
			{Kind: dataplane.ClusterIP, Addr: addr, Pool: &dataplane.Pool{IfEmpty: dataplane.Drop}},
			{Kind: dataplane.NodePort, Addr: addr, Pool: &dataplane.Pool{IfEmpty: dataplane.Reject}},
		},
	})}})
	changes[1] = 5
	m.Synced("iptables", dataplane.SyncReport{Err: errors.New("fault")})
	askAPIServer(t)

	w := httptest.NewRecorder()
	MetricsMux(Pages{Metrics: m}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 2`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.25"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 5`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 3`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 3`,
		`switchyard_sync_errors_total{backend="iptables",ip_family="IPv4"} 1`,
		`switchyard_sync_duration_seconds_count{audit="true",backend="iptables"} 1`,
		`switchyard_start_seconds{stage="open"} `,
		`switchyard_start_seconds{stage="list"} 0.5`,
		`switchyard_start_seconds{stage="decode"} 1.`,
		`switchyard_start_seconds{stage="build"} `,
		`switchyard_start_seconds{stage="program"} `,
		`switchyard_drift_checks_total 9`,
		`switchyard_drift_found_total 4`,
		`switchyard_drift_repairs_total 2`,
		`switchyard_backend_passed_over{backend="ebpf"} 1`,
		`switchyard_leftovers{of="kube-proxy"} 1`,
		`switchyard_host_firewall_failing 1`,
		`switchyard_source_last_contact_timestamp_seconds{resource="Services"} 1.5`,
		`switchyard_map_entries{map="frontends"} 7`,
		`switchyard_dropped_total{reason="no_route"} 3`,
		`kubernetes_build_info{build_date="`,
		`kubernetes_feature_enabled{name="ComponentFlagz",stage="BETA"} 1`,
		`kubernetes_feature_enabled{name="AllowServiceExternalIPs",stage=""} 0`,
		`rest_client_requests_total{code="418",host="`,
		`rest_client_request_duration_seconds_bucket{host="`,
		// What dashboards/proxy.libsonnet of kubernetes-mixin asks for, beside up:
		`kubeproxy_sync_proxy_rules_duration_seconds_count{`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{`,
		`kubeproxy_network_programming_duration_seconds_count{`,
		`kubeproxy_network_programming_duration_seconds_bucket{`,
		`process_resident_memory_bytes`,
		`process_cpu_seconds_total`,
		`go_goroutines`,
	} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("no %s", line)
		}
	}
}

// TestMetricsFollowWhatIsServed: a refused Service keeps no metric of the others
// from going on.
func TestMetricsFollowWhatIsServed(t *testing.T) {
	web := dataplane.PortError{ID: dataplane.PortID{Service: "web", Family: dataplane.IPv4}, Err: errors.New("no room")}
	good := dataplane.SyncReport{Want: &dataplane.Snapshot{Revision: 1}, Served: 1, InForce: &dataplane.Snapshot{}}
	in6 := good
	in6.Failing = []dataplane.FamilyStatus{{Family: dataplane.IPv6, Err: errors.New("fault")}}
	in6.Err = &dataplane.FamilyError{Failed: []dataplane.FamilyFailure{{Family: dataplane.IPv6, Err: errors.New("fault")}}}
	refused := good
	refused.Refused, refused.Tried = []dataplane.PortError{web}, []dataplane.PortError{web}
	for _, c := range []struct {
		name    string
		report  dataplane.SyncReport
		in4     bool // IPv4 is served
		in6     bool
		errors4 int
		errors6 int
		refused int
	}{
		{"all is programmed", good, true, true, 0, 0, 0},
		{"one Service port is refused", refused, true, true, 0, 0, 1},
		{"IPv6 failed", in6, true, false, 0, 1, 0},
		{"the Sync failed", dataplane.SyncReport{Want: good.Want, Err: errors.New("fault")}, false, false, 1, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := NewMetrics("v1", "fake", both)
			m.CountChanges(func() (uint64, uint64) { return 3, 4 })
			m.Programming(1, []time.Time{time.Now()})
			m.Synced("fake", c.report)
			w := httptest.NewRecorder()
			MetricsMux(Pages{Metrics: m}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			pending := 4
			if c.in4 && c.in6 {
				pending = 0
			}
			observed := map[bool]int{true: 1}
			for _, line := range []string{
				fmt.Sprintf(`kubeproxy_sync_proxy_rules_endpoint_changes_pending %d`, pending),
				fmt.Sprintf(`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} %d`, observed[c.in4]),
				fmt.Sprintf(`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} %d`, observed[c.in6]),
				fmt.Sprintf(`switchyard_sync_errors_total{backend="fake",ip_family="IPv4"} %d`, c.errors4),
				fmt.Sprintf(`switchyard_sync_errors_total{backend="fake",ip_family="IPv6"} %d`, c.errors6),
				fmt.Sprintf(`switchyard_refused_service_ports{ip_family="IPv4"} %d`, c.refused),
				`switchyard_refused_service_ports{ip_family="IPv6"} 0`,
			} {
				if !strings.Contains(w.Body.String(), line+"\n") {
					t.Errorf("no %s", line)
				}
			}
			for family, want := range map[string]bool{"IPv4": c.in4, "IPv6": c.in6} {
				if got := strings.Contains(w.Body.String(), `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="`+family+`"}`); got != want {
					t.Errorf("there is a time of the last Sync of %s: %v; want %v", family, got, want)
				}
			}
		})
	}
}

// TestDocsNameEveryMetric: docs/kube-proxy.md lists each metric that status and
// the backends make, and says of none of them that it is missing.
func TestDocsNameEveryMetric(t *testing.T) {
	text, err := os.ReadFile("../../docs/kube-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	docs := string(text)
	_, missing, _ := strings.Cut(docs, "Not there: ")
	missing, _, _ = strings.Cut(missing, "\n")
	for _, name := range metricsMade(t) {
		short := strings.TrimPrefix(strings.TrimPrefix(name, "switchyard_"), "kubeproxy_")
		if !strings.Contains(docs, "`"+short+"`") && !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("no word of %s", name)
		}
		if strings.Contains(missing, short) {
			t.Errorf("%s is there, and said to be missing", name)
		}
	}
}

// TestDocumentedMetricsExist: each metric in the tables of docs/kube-proxy.md is
// made by status or a backend.
func TestDocumentedMetricsExist(t *testing.T) {
	text, err := os.ReadFile("../../docs/kube-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	made, listed := metricsMade(t), 0
	for _, prefix := range []string{"kubeproxy_", "switchyard_"} {
		_, table, _ := strings.Cut(string(text), "| metrics `"+prefix+"…` | |\n|---|---|\n")
		table, _, _ = strings.Cut(table, "\n\n")
		for line := range strings.Lines(table) {
			names, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
			for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(names, -1) {
				listed++
				if !slices.Contains(made, prefix+name[1]) {
					t.Errorf("docs/kube-proxy.md lists %s%s; nothing makes it", prefix, name[1])
				}
			}
		}
	}
	if listed < 30 {
		t.Errorf("found just %d metrics in docs/kube-proxy.md", listed)
	}
}

// metricsMade finds the names of metrics: those of Metrics in what it registers,
// and those of backends in their sources.
func metricsMade(t *testing.T) []string {
	t.Helper()
	m := NewMetrics("v1", "iptables", both)
	m.CountChanges(func() (uint64, uint64) { return 1, 1 })
	m.CountDrift(func() dataplane.Drift { return dataplane.Drift{} })
	m.CountLeftovers(func() map[string][]string { return map[string][]string{"kube-proxy": {"4 chains"}} })
	m.ShowPassedOver([]string{"ebpf"})
	m.ShowFirewall(func() ([]string, error) { return nil, errors.New("fault") })
	m.CountContacts(func() map[string]time.Time { return map[string]time.Time{"Services": time.UnixMilli(1)} })
	m.CountStart(time.Now(), func() (time.Time, time.Duration) { return time.Time{}, 0 })
	m.ShowGates([]Gate{{"A", "", true}})
	m.ConntrackCleaned(dataplane.IPv4, 1, time.Millisecond)
	m.Queued()
	m.Synced("iptables", dataplane.SyncReport{Err: errors.New("fault")})
	m.Synced("iptables", dataplane.SyncReport{Audit: true, Want: &dataplane.Snapshot{}, InForce: &dataplane.Snapshot{}})
	m.healthz.WithLabelValues("200")
	m.livez.WithLabelValues("200")
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		if n := f.GetName(); strings.HasPrefix(n, "switchyard_") || strings.HasPrefix(n, "kube") {
			names = append(names, n)
		}
	}
	sources, err := filepath.Glob("../../dataplane/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range sources {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, quoted := range regexp.MustCompile(`"(?:switchyard|kubeproxy)_[a-z_]+"`).FindAllString(string(text), -1) {
			names = append(names, strings.Trim(quoted, `"`))
		}
	}
	return names
}

// counter is a backend that counts.
type counter struct{}

func (counter) Counts() ([]dataplane.Count, error) {
	return []dataplane.Count{
		{Name: "switchyard_map_entries", Labels: []dataplane.Label{{Name: "map", Value: "frontends"}}, Value: 7},
		{Name: "switchyard_dropped_total", Grows: true, Labels: []dataplane.Label{{Name: "reason", Value: "no_route"}}, Value: 3},
	}, nil
}

// askAPIServer makes a request with client-go.
func askAPIServer(t *testing.T) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer s.Close()
	client, err := rest.UnversionedRESTClientFor(&rest.Config{Host: s.URL, ContentConfig: rest.ContentConfig{NegotiatedSerializer: serializer.NewCodecFactory(runtime.NewScheme())}})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get().AbsPath("/tea").Do(t.Context()).Error(); err == nil {
		t.Error("no error")
	}
}

// TestPages: what stands beside the metrics (KUBE-PROXY §2.3).
func TestPages(t *testing.T) {
	h := &Health{Sync: func() dataplane.SyncStatus { return dataplane.SyncStatus{InForce: 1, Served: 1} }, NodeEligible: func() bool { return false }, Now: time.Now}
	p := Pages{
		Metrics: NewMetrics("v1", "fake", both), Health: h, Backend: "fake", Version: "v1", Started: time.Now(),
		Config: func() map[string]any {
			return map[string]any{"kubeproxy.config.k8s.io": map[string]string{"mode": "fake"}}
		},
		Flags:   map[string]string{"config": "/x"},
		Statusz: true, Profiling: true,
	}
	for path, want := range map[string]string{
		"/healthz":             "ok",
		"/proxyMode":           "fake",
		"/configz":             `{"kubeproxy.config.k8s.io":{"mode":"fake"}}`,
		"/flagz":               "config=/x",
		"/statusz":             "/metrics/slis",
		"/metrics/slis":        `kubernetes_healthcheck{name="kernel",type="healthz"} 0`,
		"/debug/pprof/cmdline": "",
	} {
		w := httptest.NewRecorder()
		MetricsMux(p).ServeHTTP(w, requestFrom("127.0.0.1:40000", http.MethodGet, path, ""))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d: %s; want %s", path, w.Code, w.Body, want)
		}
	}
	p.Flags, p.Statusz, p.Profiling = nil, false, false
	for _, path := range []string{"/flagz", "/statusz", "/debug/pprof/"} {
		w := httptest.NewRecorder()
		MetricsMux(p).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusNotFound {
			t.Errorf("%s: %d though it is off", path, w.Code)
		}
	}
}

func requestFrom(client, method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = client
	return r
}

// TestDebugPagesAreLocal: whatever address the server has, profiles and the
// level of the log are for clients on the node.
func TestDebugPagesAreLocal(t *testing.T) {
	changed := false
	mux := MetricsMux(Pages{Metrics: NewMetrics("v1", "fake", both), Profiling: true, SetVerbosity: func(int) { changed = true }})
	for client, allowed := range map[string]bool{
		"127.0.0.1:40000": true, "127.0.0.2:40000": true, "[::1]:40000": true, "[::ffff:127.0.0.1]:40000": true,
		"192.0.2.1:40000": false, "[2001:db8::1]:40000": false, "[::ffff:192.0.2.1]:40000": false, "@": false,
	} {
		for _, page := range []struct{ method, path, body string }{
			{http.MethodGet, "/debug/pprof/", ""}, {http.MethodGet, "/debug/pprof/cmdline", ""}, {http.MethodGet, "/debug/pprof/heap", ""},
			{http.MethodGet, "/debug/pprof/symbol", ""}, {http.MethodPut, "/debug/flags/v", "4"},
		} {
			changed = false
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, requestFrom(client, page.method, page.path, page.body))
			if (w.Code == http.StatusOK) != allowed || !allowed && (w.Code != http.StatusForbidden || changed) {
				t.Errorf("%s %s from %s: %d; want allowed: %v", page.method, page.path, client, w.Code, allowed)
			}
		}
		w := httptest.NewRecorder()
		if mux.ServeHTTP(w, requestFrom(client, http.MethodGet, "/metrics", "")); w.Code != http.StatusOK {
			t.Errorf("/metrics from %s: %d", client, w.Code)
		}
	}
}

// TestVerbosityPage: how much is logged changes by request, as in kube-proxy.
func TestVerbosityPage(t *testing.T) {
	level := -1
	p := Pages{Metrics: NewMetrics("v1", "fake", both), Profiling: true, SetVerbosity: func(l int) { level = l }}
	for _, tc := range []struct {
		method, body string
		code, level  int
	}{
		{http.MethodPut, "4", 200, 4},
		{http.MethodPut, " 0\n", 200, 0},
		{http.MethodPut, "high", 400, -1},
		{http.MethodPut, "-1", 400, -1},
		{http.MethodPut, "", 400, -1},
		{http.MethodGet, "", 405, -1},
	} {
		level = -1
		w := httptest.NewRecorder()
		MetricsMux(p).ServeHTTP(w, requestFrom("[::1]:40000", tc.method, "/debug/flags/v", tc.body))
		if w.Code != tc.code || level != tc.level {
			t.Errorf("%s %q: %d and level %d: %s", tc.method, tc.body, w.Code, level, w.Body)
		}
	}
}

func TestServerWaitsForAnAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := taken.Addr().String()
	t.Run("at once an error with HardFail", func(t *testing.T) {
		s := &Server{Name: "health", Addr: addr, HardFail: true, Log: slog.New(slog.DiscardHandler)}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "health server cannot listen on "+addr) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("otherwise until it is free", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &Server{Name: "health", Addr: addr, Handler: text("ok"), Log: slog.New(slog.DiscardHandler)}
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		_ = taken.Close()
		var body []byte
		for range 100 {
			if resp, err := http.Get("http://" + addr); err == nil {
				body, _ = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if string(body) != "ok" {
			t.Errorf("answered %q", body)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestAScrapeCostsTheSameForAnyNumberOfServices: what a scrape allocates to count
// the ports without an endpoint here does not grow with their number.
func TestAScrapeCostsTheSameForAnyNumberOfServices(t *testing.T) {
	scrape := func(services int) float64 {
		var ports []*dataplane.ServicePort
		for i := range services {
			id := dataplane.PortID{Namespace: "shop", Service: strings.Repeat("x", i%40) + string(rune('a'+i/40)), Protocol: dataplane.TCP, Family: dataplane.IPv4}
			dropped := &dataplane.Pool{IfEmpty: dataplane.Drop}
			ports = append(ports, &dataplane.ServicePort{ID: id, Frontends: []dataplane.Frontend{{Kind: dataplane.ClusterIP, Pool: dropped}, {Kind: dataplane.NodePort, Pool: dropped}}})
		}
		m := NewMetrics("v1", "fake", both)
		m.inForce.Store(&dataplane.Snapshot{Node: &dataplane.Node{}, Ports: dataplane.MakePorts(ports...)})
		out := make(chan prometheus.Metric, 10)
		return testing.AllocsPerRun(10, func() {
			noLocalEndpoints{m}.Collect(out)
			for len(out) > 0 {
				<-out
			}
		})
	}
	if few, many := scrape(10), scrape(900); many > few+5 {
		t.Errorf("%v allocations for 10 Services, %v for 900", few, many)
	}
}

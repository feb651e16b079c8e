package status

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

func TestHealthTellsHowTheKernelStands(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	fault := errors.New("netlink: no buffer space")
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
		{"all is in the kernel", dataplane.SyncStatus{Wanted: 7, InForce: 7, LastSync: ago(time.Hour)}, true, 200, 200, 200, ""},
		{"a change is on its way", dataplane.SyncStatus{Wanted: 8, InForce: 7, Behind: ago(time.Second)}, true, 200, 200, 200, ""},
		{"a failure is being retried", dataplane.SyncStatus{Wanted: 8, InForce: 7, Behind: ago(59 * time.Second), Err: fault}, true, 200, 200, 200, ""},
		{"behind for more than a minute", dataplane.SyncStatus{Wanted: 8, InForce: 7, Behind: ago(61 * time.Second), Err: fault}, true, 503, 503, 503, "no buffer space"},
		{"the node is going away (KEP-3836)", dataplane.SyncStatus{Wanted: 7, InForce: 7}, false, 503, 200, 200, ""},
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
		Sync:         func() dataplane.SyncStatus { return dataplane.SyncStatus{InForce: 1} },
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
	m.CountChanges(func() uint64 { return 1 }, func() uint64 { return 2 })
	m.ConntrackCleaned(dataplane.IPv4, 3, time.Millisecond)
	m.Synced("iptables", dataplane.SyncReport{Audit: true, Want: &dataplane.Snapshot{Revision: 1}, InForce: &dataplane.Snapshot{Ports: dataplane.MakePorts(&dataplane.ServicePort{
		ID: dataplane.PortID{Service: "a", Family: dataplane.IPv4},
		Frontends: []dataplane.Frontend{
			{Kind: dataplane.ClusterIP, Addr: addr, Pool: &dataplane.Pool{IfEmpty: dataplane.Drop}},
			{Kind: dataplane.NodePort, Addr: addr, Pool: &dataplane.Pool{IfEmpty: dataplane.Reject}},
		},
	})}})
	m.Synced("iptables", dataplane.SyncReport{Err: errors.New("fault")})

	w := httptest.NewRecorder()
	MetricsMux(m, "iptables").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 2`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.25"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 2`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 3`,
		`switchyard_sync_errors_total{backend="iptables"} 1`,
		`process_resident_memory_bytes`,
		`go_goroutines`,
	} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("no %s", line)
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

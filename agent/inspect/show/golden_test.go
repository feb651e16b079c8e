package show_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/agent/inspect/doctor"
	"github.com/switchyard-io/switchyard/agent/inspect/show"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/manifests"
)

var update = flag.Bool("update", false, "write testdata anew")

// kernel is a Backend in memory.
type kernel struct {
	holds *dataplane.Snapshot
	drift []string
}

func (k *kernel) Sync(_ context.Context, prev, want *dataplane.Snapshot) error {
	k.holds = want
	if prev == nil {
		k.drift = nil
	}
	return nil
}

func (k *kernel) Observe(context.Context) (*dataplane.Observation, error) {
	o := dataplane.Expect(k.holds)
	o.Other, o.Whole = k.drift, true
	return o, nil
}

func (k *kernel) Close() error { return nil }

var (
	now   = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	three = time.Date(2026, 11, 1, 8, 55, 30, 0, time.UTC)
)

// newInspector works on the manifests in testdata, which are in force when it returns.
func newInspector(t *testing.T, k *kernel, pods []netip.Prefix) *inspect.Inspector {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	synced := make(chan struct{}, 16)
	var syncer *dataplane.Syncer
	w, err := watcher.New(watcher.Options{
		Log: log, NodeName: "node-a", Families: []dataplane.Family{dataplane.IPv4}, ExternalIPs: true, LocalhostNodePorts: true,
		DetectLocal: watcher.DetectLocal{ClusterCIDRs: pods},
		Addresses: func(ctx context.Context, report func([]netip.Prefix)) error {
			report([]netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("192.0.2.1/32")})
			<-ctx.Done()
			return nil
		},
	}, func() { syncer.Notify() })
	if err != nil {
		t.Fatal(err)
	}
	syncer = dataplane.NewSyncer(k, dataplane.SyncerConfig{Log: log, AuditInterval: -1, Next: w.Next, Report: func(dataplane.SyncReport) { synced <- struct{}{} }})
	go func() { _ = w.Run(t.Context(), manifests.New("testdata/manifests", "node-a", log)) }()
	go syncer.Run(t.Context())
	select {
	case <-synced:
	case <-time.After(time.Minute):
		t.Fatalf("nothing is synced: %+v", w.Status())
	}
	return &inspect.Inspector{
		Version: "v1.2.3", Started: three, NodeName: "node-a", Families: []dataplane.Family{dataplane.IPv4},
		Backend: inspect.Backend{Name: "iptables", Asked: "auto", PassedOver: []inspect.PassedOver{{Name: "ebpf", Reason: "the kernel is older than 5.10"}}},
		Watcher: w, Syncer: syncer, VerifyInterval: time.Minute,
		Health: func() inspect.Health { return inspect.Health{Healthy: true, Ready: true} },
		Device: func(netip.Addr) (string, error) { return "", errors.New("no devices here") },
	}
}

// TestOutputs compares what is printed for people, and the JSON that it is
// printed from, with testdata. `go test ./inspect/show -update` writes them anew.
func TestOutputs(t *testing.T) {
	k := &kernel{}
	i := newInspector(t, k, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")})
	ask := func(to string, protocol dataplane.Protocol, from string) func(*testing.T) (any, func(*show.Printer) error) {
		return func(t *testing.T) (any, func(*show.Printer) error) {
			q := inspect.Question{To: netip.MustParseAddrPort(to), Protocol: protocol}
			if from != "" {
				q.From = netip.MustParseAddr(from)
			}
			x, err := i.Explain(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			return x, func(p *show.Printer) error { return p.Explanation(x) }
		}
	}
	services := func(namespace, name string, wide bool) func(*testing.T) (any, func(*show.Printer) error) {
		return func(t *testing.T) (any, func(*show.Printer) error) {
			s, err := i.Services(t.Context(), namespace, name)
			if err != nil {
				t.Fatal(err)
			}
			if wide {
				return s, func(p *show.Printer) error { return p.ServicesWide(s) }
			}
			return s, func(p *show.Printer) error { return p.Services(s) }
		}
	}
	verify := func(repair bool, drift ...string) func(*testing.T) (any, func(*show.Printer) error) {
		return func(t *testing.T) (any, func(*show.Printer) error) {
			k.drift = drift
			v, err := i.Verify(t.Context(), repair)
			if err != nil {
				t.Fatal(err)
			}
			v.At, v.TookSeconds = now, 0.042
			return v, func(p *show.Printer) error { return p.Verification(v) }
		}
	}
	for _, c := range []struct {
		name   string
		answer func(*testing.T) (any, func(*show.Printer) error)
	}{
		{"services", services("", "", false)},
		{"service-web", services("shop", "web", true)},
		{"explain-clusterip", ask("10.96.0.10:80", dataplane.TCP, "")},
		{"explain-loadbalancer", ask("198.51.100.7:80", dataplane.TCP, "")},
		{"explain-conflict", ask("198.51.100.8:80", dataplane.TCP, "203.0.113.9")},
		{"explain-from-inside", ask("192.0.2.1:30080", dataplane.TCP, "10.244.1.5")},
		{"explain-from-outside", ask("192.0.2.1:30080", dataplane.TCP, "203.0.113.9")},
		{"explain-source-range", ask("198.51.100.7:80", dataplane.TCP, "192.0.2.9")},
		{"explain-drop", ask("10.96.0.53:53", dataplane.UDP, "10.244.1.5")},
		{"explain-reject", ask("10.96.0.11:80", dataplane.TCP, "192.0.2.1")},
		{"explain-localhost", ask("127.0.0.1:30080", dataplane.TCP, "")},
		{"explain-no-such-port", ask("10.96.0.10:443", dataplane.TCP, "")},
		{"explain-other-protocol", ask("10.96.0.53:53", dataplane.TCP, "")},
		{"explain-unallocated", ask("10.96.3.3:80", dataplane.TCP, "")},
		{"explain-node", ask("192.0.2.1:22", dataplane.TCP, "")},
		{"explain-endpoint", ask("10.244.2.5:8080", dataplane.TCP, "")},
		{"explain-elsewhere", ask("192.0.2.200:80", dataplane.TCP, "")},
		{"verify", verify(false)},
		{"verify-differs", verify(false, "IPv4, table nat: the rule of OUTPUT that leads to SWITCHYARD-SERVICES is missing")},
		{"verify-repair", verify(true, "IPv4, table nat: chain SWITCHYARD-POSTROUTING has other rules than were written")},
		{"status", func(*testing.T) (any, func(*show.Printer) error) {
			s := i.Status()
			s.Firewall = &inspect.Firewall{KeptOpen: []string{"iptables policy DROP of FORWARD"}, Error: "running ip6tables: exit status 4"}
			s.Sync.LastSync, s.Drift.LastCheck, s.Drift.LastFound.At = now.Add(-4*time.Second), now.Add(-31*time.Second), now.Add(-3*time.Hour)
			return s, func(p *show.Printer) error { return p.Status(s) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer, tables := c.answer(t)
			var out bytes.Buffer
			if err := tables(&show.Printer{Out: &out, Now: now}); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+".txt", out.Bytes())
			body, err := json.MarshalIndent(answer, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+".json", append(body, '\n'))
		})
	}
}

// TestDoctorOutput is the same for a report of each state.
func TestDoctorOutput(t *testing.T) {
	var out bytes.Buffer
	err := (&show.Printer{Out: &out}).Doctor(doctor.Report{
		Kernel:   "5.4.0",
		Backends: []doctor.Backend{{Name: "ebpf", Reason: "the kernel is older than 5.10"}, {Name: "iptables", Works: true, Auto: true}},
		Checks: []doctor.Check{
			{Group: "kernel", Name: "version", State: doctor.Problem, Found: "5.4.0", For: []string{"ebpf"}, Advice: "the eBPF backend needs 5.10 or newer"},
			{Group: "settings", Name: "net.ipv4.ip_forward", State: doctor.OK, Found: "1"},
			{Group: "settings", Name: "net.ipv4.conf.all.rp_filter", State: doctor.Note, Found: "1", Advice: "2 is safe"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "doctor.txt", out.Bytes())
}

// TestColour is on for terminals alone, and changes nothing else.
func TestColour(t *testing.T) {
	v := inspect.Verification{Revision: 1}
	var plain, coloured bytes.Buffer
	_ = (&show.Printer{Out: &plain}).Verification(v)
	_ = (&show.Printer{Out: &coloured, Colour: true}).Verification(v)
	if bytes.Contains(plain.Bytes(), []byte("\x1b")) || !bytes.Contains(coloured.Bytes(), []byte("\x1b[32mThe kernel is as wanted\x1b[0m")) {
		t.Errorf("plain %q, coloured %q", plain.Bytes(), coloured.Bytes())
	}
}

func golden(t *testing.T, name string, have []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, have, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("not as in %s:\n%s", path, have)
	}
}

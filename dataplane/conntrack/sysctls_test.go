package conntrack

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

func TestTableSize(t *testing.T) {
	cases := []struct {
		perCore, least, cpus, want int
		why                        string
	}{
		{32768, 131072, 2, 131072, "Min is larger"},
		{32768, 131072, 4, 131072, "equal"},
		{32768, 131072, 16, 524288, "per core is larger"},
		{32768, 131072, 128, 1 << 20, "capped"},
		{32768, 3 << 20, 128, 3 << 20, "a Min above the cap wins"},
		{32768, 0, 1, 32768, "no Min"},
		{0, 131072, 16, 0, "0 per core: left alone"},
	}
	for _, tc := range cases {
		if got := (Settings{MaxPerCore: tc.perCore, Min: tc.least}).tableSize(tc.cpus); got != tc.want {
			t.Errorf("%d per core, at least %d, %d CPUs: %d, want %d (%s)", tc.perCore, tc.least, tc.cpus, got, tc.want, tc.why)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,7": 5, "0,2-5,9": 6, "": 0, "x": 0, "3-1": 0} {
		if got, ok := countCPUs(list); got != want || ok != (want > 0) {
			t.Errorf("%q: %d CPUs, %v; want %d", list, got, ok, want)
		}
	}
}

// What Tune makes of the kernel's settings, on a copy of them.
func TestTune(t *testing.T) {
	const prefix = "net/netfilter/nf_conntrack_"
	before := map[string]string{
		prefix + "max": "65536", "nf_conntrack/parameters/hashsize": "16384",
		prefix + "tcp_timeout_established": "432000", prefix + "tcp_timeout_close_wait": "60",
		prefix + "udp_timeout": "30", prefix + "udp_timeout_stream": "120", prefix + "tcp_be_liberal": "0",
	}
	cases := []struct {
		name     string
		settings Settings
		kernel   map[string]string // beside before; "": absent
		changed  map[string]string
		warnings int
	}{
		{
			name: "the defaults", settings: DefaultSettings(),
			changed: map[string]string{
				prefix + "max": "131072", "nf_conntrack/parameters/hashsize": "32768",
				prefix + "tcp_timeout_established": "86400", prefix + "tcp_timeout_close_wait": "3600",
			},
		},
		{name: "nothing asked for", settings: Settings{}},
		{
			name: "a larger table stays", settings: Settings{MaxPerCore: 1, Min: 131072},
			kernel: map[string]string{prefix + "max": "262144", "nf_conntrack/parameters/hashsize": "65536"},
		},
		{
			name: "the rest", settings: Settings{UDPTimeout: 10 * time.Second, UDPStreamTimeout: time.Minute, TCPBeLiberal: true},
			changed: map[string]string{prefix + "udp_timeout": "10", prefix + "udp_timeout_stream": "60", prefix + "tcp_be_liberal": "1"},
		},
		{
			name: "one that cannot be set holds up no other", settings: DefaultSettings(),
			kernel:   map[string]string{prefix + "tcp_timeout_established": ""},
			changed:  map[string]string{prefix + "max": "131072", "nf_conntrack/parameters/hashsize": "32768", prefix + "tcp_timeout_close_wait": "3600"},
			warnings: 1,
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			want := map[string]string{}
			for _, m := range []map[string]string{before, tc.kernel} {
				for name, value := range m {
					want[name] = value
				}
			}
			for name, value := range want {
				writeSetting(t, dir, name, value)
			}
			for name, value := range tc.changed {
				want[name] = value
			}
			var out bytes.Buffer
			tree := sysctl.Tree(dir)
			kernel{tree, tree, func() int { return 2 }}.tune(slog.New(slog.NewTextHandler(&out, nil)), tc.settings)
			for name, value := range want {
				if got, _ := tree.Get(name); got != value {
					t.Errorf("%s is %q, want %q", name, got, value)
				}
			}
			if n := strings.Count(out.String(), "level=WARN"); n != tc.warnings {
				t.Errorf("%d warnings, want %d:\n%s", n, tc.warnings, out.String())
			}
		})
	}
}

// TestTuneLater: a kernel that gets conntrack later gets the settings then, once,
// and nobody is warned before.
func TestTuneLater(t *testing.T) {
	dir := t.TempDir()
	tree := sysctl.Tree(dir)
	k := kernel{tree, tree, func() int { return 2 }}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	settings := Settings{UDPTimeout: 10 * time.Second}
	if k.tune(log, settings) || out.Len() > 0 {
		t.Fatalf("a kernel without conntrack was tuned: %s", out.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.tuneLater(ctx, log, func() Settings { return settings }, time.Millisecond)
	}()
	time.Sleep(10 * time.Millisecond)
	// The table's size comes last, which is what it is known by.
	writeSetting(t, dir, "net/netfilter/nf_conntrack_udp_timeout", "30")
	writeSetting(t, dir, "net/netfilter/nf_conntrack_max", "65536")
	<-done
	if got, _ := tree.Get("net/netfilter/nf_conntrack_udp_timeout"); got != "10" || ctx.Err() != nil {
		t.Errorf("nf_conntrack_udp_timeout is %s, want 10", got)
	}
	if strings.Contains(out.String(), "level=WARN") {
		t.Errorf("warnings:\n%s", out.String())
	}
}

func writeSetting(t *testing.T, dir, name, value string) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if value == "" {
		return
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The real kernel's names and units. The table's size belongs to the whole
// machine, so it is left alone here.
func TestTuneKernel(t *testing.T) {
	enterNetns(t)
	s := DefaultSettings()
	s.MaxPerCore = 0
	s.UDPTimeout, s.UDPStreamTimeout, s.TCPBeLiberal = 11*time.Second, 121*time.Second, true
	var out bytes.Buffer
	Tune(slog.New(slog.NewTextHandler(&out, nil)), s)
	if strings.Contains(out.String(), "read-only file system") {
		kerneltest.Unable(t, "/proc/sys is read-only")
	}
	if out.Len() > 0 {
		t.Errorf("warnings:\n%s", out.String())
	}
	for name, want := range map[string]int{
		"tcp_timeout_established": 86400, "tcp_timeout_close_wait": 3600,
		"udp_timeout": 11, "udp_timeout_stream": 121, "tcp_be_liberal": 1,
	} {
		if got, err := sysctl.Proc.Int("net/netfilter/nf_conntrack_" + name); err != nil || got != want {
			t.Errorf("nf_conntrack_%s is %d (%v), want %d", name, got, err, want)
		}
	}
}

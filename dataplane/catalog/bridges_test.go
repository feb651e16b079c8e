package catalog

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// TestWarnOfBridges: who is warned that bridges pass netfilter by.
func TestWarnOfBridges(t *testing.T) {
	four, both := []dataplane.Family{dataplane.IPv4}, []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
	for _, tc := range []struct {
		name     string
		v4, v6   string // "": the kernel has no such setting
		families []dataplane.Family
		want     int
	}{
		{"without br_netfilter", "", "", both, 0},
		{"both on", "1", "1", both, 0},
		{"both off", "0", "0", both, 2},
		{"one off", "1", "0", both, 1},
		{"off for a family that is not programmed", "1", "0", four, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "net/bridge"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, value := range map[string]string{"bridge-nf-call-iptables": tc.v4, "bridge-nf-call-ip6tables": tc.v6} {
				if value == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, "net/bridge", name), []byte(value+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			warnOfBridges(slog.New(slog.NewTextHandler(&out, nil)), sysctl.Tree(dir), tc.families)
			if got := strings.Count(out.String(), "level=WARN"); got != tc.want {
				t.Errorf("%d warnings, want %d: %s", got, tc.want, out.String())
			}
		})
	}
}

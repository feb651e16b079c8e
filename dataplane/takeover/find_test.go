package takeover

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestFind lists what Remove would remove of each mode, and nothing of others.
func TestFind(t *testing.T) {
	kerneltest.NeedMain(t)
	run(t, others, "iptables-nft-restore")
	for _, c := range []struct {
		mode       string
		make, drop string
		want       string // of it, in some line
	}{
		{"nothing", "true", "true", ""},
		{"iptables", "iptables-nft -t nat -N KUBE-SERVICES", "iptables-nft -t nat -X KUBE-SERVICES", "1 chains of iptables-nft, IPv4"},
		{"iptables, IPv6", "ip6tables-nft -t nat -N KUBE-NODEPORTS", "ip6tables-nft -t nat -X KUBE-NODEPORTS", "1 chains of iptables-nft, IPv6"},
		{"legacy", "iptables-legacy -t nat -N KUBE-SERVICES", "iptables-legacy -t nat -X KUBE-SERVICES", "1 chains of iptables-legacy, IPv4"},
		{"nftables", "nft add table ip6 kube-proxy", "nft delete table ip6 kube-proxy", "nftables table ip6 kube-proxy"},
		{"ipvs", "ip link add kube-ipvs0 type bridge", "ip link delete kube-ipvs0", "device kube-ipvs0"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			run(t, "", "sh", "-c", c.make)
			defer run(t, "", "sh", "-c", c.drop)
			found, err := kubeProxy().Find(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && len(found) > 0 || c.want != "" && !slices.Contains(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestRemoveRefusesWhileOneRuns: a kube-proxy in this network namespace keeps
// what it wrote; one in another namespace is none of ours.
func TestRemoveRefusesWhileOneRuns(t *testing.T) {
	kerneltest.NeedMain(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "kube-proxy")
	if err := os.WriteFile(name, binary, 0o755); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	for _, c := range []struct {
		where  string
		flags  uintptr
		refuse bool
	}{{"here", 0, true}, {"elsewhere", syscall.CLONE_NEWNET, false}} {
		t.Run(c.where, func(t *testing.T) {
			cmd := exec.Command(name, "60")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.flags, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			time.Sleep(100 * time.Millisecond) // until it is itself
			run(t, "", "iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
			err := kubeProxy().Remove(t.Context(), slog.New(slog.DiscardHandler))
			there := strings.Contains(run(t, "", "iptables-nft-save", "-t", "nat"), ":KUBE-SERVICES")
			if refused := errors.As(err, new(*RunningError)); refused != c.refuse || there != c.refuse || !refused && err != nil {
				t.Errorf("Remove: %v, chain there: %v; want refused: %v", err, there, c.refuse)
			}
			if there {
				run(t, "", "iptables-nft", "-t", "nat", "-X", "KUBE-SERVICES")
			}
		})
	}
}

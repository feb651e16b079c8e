package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/agent/inspect"
)

// TestLeftoversAreTold: an agent says what another backend or a kube-proxy left,
// a cleanup says what it removes, and --dry-run removes nothing.
func TestLeftoversAreTold(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	dir, socket := t.TempDir(), filepath.Join(t.TempDir(), "agent.sock")
	writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
	pins := "--ebpf-pin-dir=" + filepath.Join(t.TempDir(), "none")
	agent := func(backend string) (*process, func() inspect.Status) {
		p := start(t, func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--socket="+socket) }, "run", "--backend="+backend, pins, "--manifests="+dir,
			"--hostname-override=node-1", "--cluster-cidr=10.244.0.0/16", "--healthz-bind-address=", "--metrics-bind-address=127.0.0.1:10249")
		status := func() inspect.Status { s, _, _ := (inspect.Client{Socket: socket}).Status(t.Context()); return s }
		p.within(t, "ready", func() bool { return status().Health.Ready })
		return p, status
	}
	stop := func(p *process) {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		<-p.done
	}
	clean := func(args ...string) (code int, out string) {
		p := &bytes.Buffer{}
		q := start(t, func(cmd *exec.Cmd) { cmd.Stdout = p }, append([]string{"cleanup", pins}, args...)...)
		code, _ = q.ended(t)
		return code, p.String()
	}

	first, status := agent("iptables")
	time.Sleep(200 * time.Millisecond)
	if left := status().Leftovers; len(left) > 0 {
		t.Errorf("a first agent speaks of leftovers: %v", left)
	}
	stop(first)
	if out, err := exec.Command("nft", "add table ip kube-proxy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	second, status := agent("nftables")
	second.within(t, "status tells of both", func() bool {
		l := status().Leftovers
		return len(l["iptables"]) > 0 && len(l["kube-proxy"]) == 1 && len(l) == 2
	})
	if _, page := get("http://127.0.0.1:10249/metrics"); !strings.Contains(page, `switchyard_leftovers{of="iptables"} 1`) {
		t.Error("no metric of them")
	}
	if !strings.Contains(second.stderr(), "rules that nobody updates are in force beside ours") {
		t.Error("the log says nothing of it")
	}

	if code, out := clean("--dry-run"); code != 0 || !strings.Contains(out, "would remove nftables: nftables table ip switchyard\n") || !strings.Contains(out, "would remove iptables: ") {
		t.Errorf("--dry-run beside an agent: %d, %q", code, out)
	}
	if code, out := clean(); code == 0 || out != "" {
		t.Errorf("beside an agent: %d, %q", code, out)
	}
	if code, out := clean("--force", "--backend=iptables"); code != 0 || !strings.Contains(out, "removed iptables: ") || strings.Contains(out, "nftables:") {
		t.Errorf("--force beside an agent: %d, %q", code, out)
	}
	stop(second)
	if code, out := clean("--kube-proxy"); code != 0 || !strings.Contains(out, "removed nftables: nftables table ip6 switchyard\n") || !strings.Contains(out, "removed kube-proxy: nftables table ip kube-proxy\n") || strings.Contains(out, "iptables: ") {
		t.Errorf("afterwards: %d, %q", code, out)
	}
	for _, args := range [][]string{nil, {"--dry-run"}, {"--kube-proxy"}} {
		if code, out := clean(args...); code != 0 || out != "There is nothing to remove.\n" {
			t.Errorf("where nothing is, %v: %d, %q", args, code, out)
		}
	}
}

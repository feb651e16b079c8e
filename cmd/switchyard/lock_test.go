package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOneWriter: beside an agent no other one starts and no cleanup removes
// anything, whatever the backend; what programs nothing is not held up; and when
// the agent has ended, even by SIGKILL, the next one starts.
func TestOneWriter(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
	run := []string{"run", "--backend=iptables", "--hostname-override=node-1", "--manifests=" + dir, "--healthz-bind-address=", "--metrics-bind-address="}
	forwards := func() bool { return strings.Contains(rules(t), "10.96.0.10") }
	first := start(t, nil, run...)
	first.within(t, "the first agent forwards", forwards)
	holder := fmt.Sprintf("switchyard run (pid %d)", first.cmd.Process.Pid)

	none := "--ebpf-pin-dir=" + filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"cleanup", none}, {"cleanup", "--drain=1s", none}, {"run", "--cleanup", none}} {
		code, line := start(t, nil, args...).ended(t)
		if code == 0 || !strings.Contains(line, "nothing is removed, because "+holder) || !strings.Contains(line, "stop it first") {
			t.Errorf("%s: status %d: %s", args, code, line)
		}
	}
	if !forwards() {
		t.Error("cleanup removed the rules of a running agent")
	}
	if code, line := start(t, nil, append(run, "--init-only")...).ended(t); code != 0 {
		t.Errorf("--init-only: status %d: %s", code, line)
	}

	second := start(t, nil, run...)
	second.within(t, "the second agent waits", func() bool { return strings.Contains(second.stderr(), "waiting for another process") })
	if !strings.Contains(second.stderr(), holder) {
		t.Errorf("it does not say for whom: %s", second.stderr())
	}
	if out, err := exec.Command("iptables", "-t", "nat", "-F", "SWITCHYARD-SERVICES").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_ = first.cmd.Process.Kill()
	second.within(t, "the second agent forwards", func() bool { return strings.Contains(rules(t), "-A SWITCHYARD-SERVICES") })
}

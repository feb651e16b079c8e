package cgroups

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// write makes a directory that looks like a cgroup with processes.
func write(t *testing.T, dir string, pids ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strings.Join(pids, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ended are processes that are not there.
func ended(n int) []string {
	pids := make([]string, n)
	for i := range pids {
		pids[i] = strconv.Itoa(1<<22 + i) // the kernel's limit of process numbers
	}
	return pids
}

// A cgroup with very many processes costs its share, and keeps nobody else from
// being found.
func TestManyProcesses(t *testing.T) {
	root, own := t.TempDir(), strconv.Itoa(os.Getpid())
	write(t, filepath.Join(root, "a-crowd"), append(ended(1_000_000), own)...)
	known := map[string]string{}
	found, err := Search(root, known)
	if err != nil || !found.Whole || len(found.Processes) > 0 {
		t.Errorf("a process behind %d others: found %v, %v", 1_000_000, found, err)
	}
	write(t, filepath.Join(root, "b-pod"), own)
	found, err = Search(root, known)
	if err != nil || !found.Whole || found.Processes[NamespaceOf("self")] != own || len(known) != 1 {
		t.Errorf("found %v, %v, known are %v; want process %s", found, err, known, own)
	}
	known[own] = "remembered"
	if found, err = Search(root, known); err != nil || found.Processes["remembered"] != own {
		t.Errorf("a known process is asked again: found %v, %v", found, err)
	}
}

// All cgroups together have a bound, and what was left out is told.
func TestManyCgroups(t *testing.T) {
	root := t.TempDir()
	for n := range mostAsked/mostProcesses + 1 {
		write(t, filepath.Join(root, "pod-"+strconv.Itoa(1000+n)), ended(mostProcesses)...)
	}
	if found, err := Search(root, nil); err != nil || found.Whole {
		t.Errorf("found %v, %v; want it cut off", found, err)
	}
}

// A cgroup with many network namespaces has some of them found.
func TestManyNamespaces(t *testing.T) {
	kerneltest.NeedRoot(t)
	root := t.TempDir()
	var pids []string
	for range mostNamespaces + 4 {
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		pids = append(pids, strconv.Itoa(cmd.Process.Pid))
	}
	write(t, filepath.Join(root, "a-crowd"), pids[1:]...)
	write(t, filepath.Join(root, "b-pod"), pids[0])
	found, err := Search(root, nil)
	if err != nil || !found.Whole || len(found.Processes) != mostNamespaces+1 || found.Processes[NamespaceOf(pids[0])] != pids[0] {
		t.Errorf("found %v, %v; want %d, process %s among them", found, err, mostNamespaces+1, pids[0])
	}
}

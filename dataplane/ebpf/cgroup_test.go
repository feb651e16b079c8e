package ebpf

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Any directory of cgroup v2 is taken as it is, and v2 is found below a directory
// that is of v1 or of none.
func TestCgroupRoot(t *testing.T) {
	needKernel(t)
	mounted, err := cgroupMounts()
	if err != nil || len(mounted) == 0 {
		t.Fatalf("no cgroup v2 is mounted: %v", err)
	}
	root := mounted[0]
	for dir, want := range map[string]string{"": root, root: root, filepath.Dir(root): root, filepath.Dir(root) + "/": root, "/": root} {
		if filepath.Dir(root) == "/sys/fs" && dir != "" && dir != root && dir != "/" {
			continue // not a hybrid host
		}
		if got, err := cgroupRoot(dir); err != nil || got != want {
			t.Errorf("%q is taken for %q, %v; want %s", dir, got, err, want)
		}
	}
	if got, err := cgroupRoot(t.TempDir()); !errors.Is(err, dataplane.ErrUnsupported) {
		t.Errorf("a directory without cgroups is taken for %q, %v", got, err)
	}
	if _, err := cgroupRoot("/nosuch"); err == nil {
		t.Error("a directory that is not there is taken")
	}
}

// In a cgroup namespace of its own, as in a pod, the agent sees other processes
// only if it is told where the host's cgroups are. It says so in its log, in
// status and in explain.
func TestOwnCgroupNamespace(t *testing.T) {
	o := testOptions(t)
	given := o.CgroupRoot
	for _, c := range []struct {
		name    string
		unshare bool
		root    string
		says    bool
	}{
		{"in that of the tests, nothing is given", false, "", narrowCgroup("") != ""},
		{"in its own, the root is given", true, given, false},
		{"in its own, nothing is given", true, "", true},
	} {
		result := make(chan string)
		go func() {
			runtime.LockOSThread() // and never unlock: the thread ends with its namespace
			if c.unshare {
				if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
					result <- err.Error()
					return
				}
			}
			var log bytes.Buffer
			cfg := testConfig()
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			o.CgroupRoot = c.root
			opened, err := testDriver(o).Open(t.Context(), cfg) // it attaches nothing
			if err != nil {
				result <- err.Error()
				return
			}
			b := opened.(*accelerated)
			logged, told := strings.Contains(log.String(), "cgroup namespace"), b.Sockets().Reason
			way := b.SocketsOf(netip.MustParseAddr("10.40.1.9"))
			if err := b.Close(); err != nil {
				result <- err.Error()
				return
			}
			if logged != c.says || (told != "") != c.says || way.AtSocket == c.says {
				result <- "the log:\n" + log.String() + "status: " + told + "\nexplain: " + way.Why
				return
			}
			result <- ""
		}()
		if what := <-result; what != "" {
			t.Errorf("%s: %s", c.name, what)
		}
	}
}

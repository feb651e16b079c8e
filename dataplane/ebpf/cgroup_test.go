package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// Any directory of cgroup v2 is taken as it is, and v2 is found below a directory
// that is of v1 or of none.
func TestCgroupRoot(t *testing.T) {
	needKernel(t)
	root, err := programs.CgroupRoot("")
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": root, root: root, filepath.Dir(root): root, filepath.Dir(root) + "/": root, "/": root} {
		if filepath.Dir(root) == "/sys/fs" && dir != "" && dir != root && dir != "/" {
			continue // not a hybrid host
		}
		if got, err := programs.CgroupRoot(dir); err != nil || got != want {
			t.Errorf("%q is taken for %q, %v; want %s", dir, got, err, want)
		}
	}
	if got, err := programs.CgroupRoot(t.TempDir()); !errors.Is(err, dataplane.ErrUnsupported) {
		t.Errorf("a directory without cgroups is taken for %q, %v", got, err)
	}
	if _, err := programs.CgroupRoot("/nosuch"); err == nil {
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
		{"in that of the tests, nothing is given", false, "", programs.NarrowCgroup("") != ""},
		{"in its own, the root is given", true, given, false},
		{"in its own, nothing is given", true, "", true},
	} {
		err := netns.OnThread(func() error {
			if c.unshare {
				if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
					return err
				}
			}
			o.CgroupRoot = c.root
			var log bytes.Buffer
			cfg := testConfig()
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			opened, err := testDriver(o).Open(t.Context(), cfg) // it attaches nothing
			if err != nil {
				return err
			}
			b := opened.(*accelerated)
			told, way := b.Sockets().Reason, b.SocketsOf(netip.MustParseAddr("10.40.1.9"))
			if strings.Contains(log.String(), "cgroup namespace") != c.says || (told != "") != c.says || way.AtSocket == c.says {
				err = fmt.Errorf("the log: %s\nstatus: %s\nexplain: %s", log.String(), told, way.Why)
			}
			return errors.Join(err, b.Close())
		})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

package ebpf

import (
	"errors"
	"path/filepath"
	"testing"

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

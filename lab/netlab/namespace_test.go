package netlab

import (
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestNamesBesideOthers: a namespace that somebody adds with `ip netns` after
// ours, the machine's first, does not keep ours from being removed.
func TestNamesBesideOthers(t *testing.T) {
	needRoot(t)
	inOwnMounts(t)
	if err := ShareNames(); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.NewNamed("ours") // on this thread
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if out, err := exec.Command("ip", "netns", "add", "theirs").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"ours", "theirs"} {
		if err := removeNamespace(name); err != nil {
			t.Error(err)
		}
	}
}

// inOwnMounts has the rest of the test see an empty /run of its own. The thread
// ends with the test.
func inOwnMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
}

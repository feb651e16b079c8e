// Package kerneltest gives a test what it needs of the kernel: root, and a network
// namespace of its own. A test that this machine cannot run is skipped and says
// why, or fails if REQUIRE_KERNEL=1 demands that nothing is left out.
package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Required reports whether a test that this machine cannot run fails.
func Required() bool { return os.Getenv("REQUIRE_KERNEL") == "1" }

// Unable ends a test that this machine cannot run.
func Unable(t testing.TB, why ...any) {
	t.Helper()
	if Required() {
		t.Fatal("REQUIRE_KERNEL=1: " + fmt.Sprint(why...))
	}
	t.Skip(why...)
}

// NeedRoot ends a test that root does not run.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unable(t, "needs root")
	}
}

// OwnNetns puts the rest of the test into a network namespace of its own. It goes
// with the test's thread, which is never handed back.
func OwnNetns(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		Unable(t, "making a network namespace: ", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
}

// LoopbackUp sets up lo in the network namespace of this thread.
func LoopbackUp(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("setting up lo: %v", err)
	}
}

// child is set in a process that runs tests in a network namespace of its own: to
// a test's name, or to all.
const (
	child = "SWITCHYARD_TEST_CHILD"
	all   = "1"
)

// Child is how a test runs in a process of its own.
type Child struct {
	Args []string // of the test binary, as -test.timeout=10m
	Env  []string
}

// Run does the rest of a test in a process and a network namespace of its own, for
// what works on its process's namespace and uses several threads.
func (c Child) Run(t *testing.T, do func()) {
	t.Helper()
	if c.Again(t) {
		do()
	}
}

// Again runs a test once more, in a process and a network namespace of its own,
// and reports whether this is that run.
func (c Child) Again(t *testing.T) bool {
	t.Helper()
	if os.Getenv(child) == t.Name() {
		return true
	}
	NeedRoot(t)
	runtime.LockOSThread() // the kernel ends the process when the thread that started it ends
	defer runtime.UnlockOSThread()
	args := append([]string{"-test.run=^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"}, c.Args...)
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := inNetns(args)
	cmd.Env = append(append(cmd.Env, child+"="+t.Name()), c.Env...)
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("in a network namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skipf("in a network namespace:\n%s", out)
	case testing.Verbose():
		t.Logf("in a network namespace:\n%s", out)
	}
	return false
}

// Main is a TestMain that runs all tests in a process and a network namespace of
// their own, once prepare is done there; nil means that there is nothing to
// prepare. Without root it runs them here, and those that call NeedMain are
// skipped. env adds to the process's environment.
func Main(m *testing.M, prepare func() error, env ...string) {
	if os.Getenv(child) != "" {
		if prepare != nil {
			if err := prepare(); err != nil {
				fmt.Fprintln(os.Stderr, "preparing the network namespace:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the kernel ends the process when the thread that started it ends
	cmd := inNetns(os.Args[1:])
	cmd.Env = append(append(cmd.Env, child+"="+all), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		if !errors.As(err, new(*exec.ExitError)) {
			fmt.Fprintln(os.Stderr, "running the tests in a network namespace:", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// NeedMain ends a test that Main does not run in a network namespace.
func NeedMain(t testing.TB) {
	t.Helper()
	if os.Getenv(child) == "" {
		Unable(t, "needs root for a network namespace")
	}
}

// inNetns is this test binary in a network namespace of its own.
func inNetns(args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd
}

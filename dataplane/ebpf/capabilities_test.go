package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// lesserVariable is set in a process that has only some capabilities.
const lesserVariable = "SWITCHYARD_EBPF_TEST_LESSER"

// TestCapabilities: the backend runs with just these capabilities, and names
// the one that is missing. SYS_ADMIN is not among them: README.md tells what it adds.
func TestCapabilities(t *testing.T) {
	needKernel(t)
	if os.Getenv(lesserVariable) != "" {
		t.Skip("this is the process with fewer capabilities")
	}
	if out, err := withCapabilities(""); err != nil {
		t.Errorf("with all that it needs: %v\n%s", err, out)
	}
	for name := range programs.NeededCapabilities() {
		says := "this process lacks " + name + ":"
		if name == "CAP_NET_ADMIN" {
			says = "not permitted" // the test itself needs it first
		}
		if out, err := withCapabilities(name); err == nil || !strings.Contains(out, says) {
			t.Errorf("without %s: %v\n%s", name, err, out)
		}
	}
}

// withCapabilities runs TestLesser in a process with the capabilities but one.
func withCapabilities(without string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^TestLesser$", "-test.v")
	cmd.Env = append(os.Environ(), lesserVariable+"=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and with it what it gave up
		if err := giveUp(without); err != nil {
			result <- err
			return
		}
		result <- cmd.Run()
	}()
	err := <-result
	if err == nil && !strings.Contains(out.String(), "--- PASS: TestLesser") {
		err = errors.New("the test did not run")
	}
	return out.String(), err
}

// giveUp leaves what this thread starts with the capabilities but one.
func giveUp(without string) error {
	keep := map[uintptr]bool{}
	for name, c := range programs.NeededCapabilities() {
		keep[uintptr(c)] = name != without
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel that knows fewer
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
	}
	return nil
}

// TestLesser is the backend's life from Open to Cleanup.
func TestLesser(t *testing.T) {
	if os.Getenv(lesserVariable) == "" {
		t.Skip("part of TestCapabilities")
	}
	o := testOptions(t)
	if err := testDriver(o).Probe(t.Context(), testConfig()); err != nil {
		t.Fatalf("probing: %v", err)
	}
	b := openBackend(t, o)
	serves := func(endpoint string) *dataplane.Snapshot {
		p := portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.8:53", poolOf(endpoint)))
		p.Serving = []dataplane.Endpoint{{Addr: netip.MustParseAddrPort(endpoint)}}
		return snapshot(p)
	}
	var prev *dataplane.Snapshot
	for _, endpoint := range []string{"127.0.3.1:8080", "127.0.3.2:8080"} {
		want := serves(endpoint)
		mustSync(t, b, prev, want)
		checkHolds(t, b, want)
		if got, err := connectHere(b, netip.MustParseAddrPort("10.96.0.8:53")); err != nil || got != endpoint {
			t.Errorf("a socket of the node got %q, %v; want %s", got, err, endpoint)
		}
		prev = want
	}
}

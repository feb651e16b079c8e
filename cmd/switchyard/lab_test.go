package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// asSwitchyard has this test binary be the command itself.
const asSwitchyard = "SWITCHYARD_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asSwitchyard) != "" {
		_ = os.Unsetenv(asSwitchyard)
		main()
	}
	netlab.Main(nil)
	os.Exit(m.Run())
}

// site is a node of a lab with an agent that works on manifests.
type site struct {
	t      *testing.T
	lab    *netlab.Lab
	node   *netlab.Node
	dir    string // of the manifests
	socket string
	log    lockedBuffer
	env    []string
	agent  *exec.Cmd
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eachBackend runs a test on every backend of the binary that works here.
func eachBackend(t *testing.T, do func(t *testing.T, backend string)) {
	for _, d := range catalog.Drivers(config.Default().Backends()) {
		if *onBackend != "" && *onBackend != d.Name {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			needs(t, d)
			do(t, d.Name)
		})
	}
}

// needs skips a test where a backend does not work, and fails it where it has to.
func needs(t *testing.T, d dataplane.Driver) {
	t.Helper()
	err := netlab.RequireRoot()
	if err == nil {
		err = d.Works(t.Context(), dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: dataplane.HostFamilies(), MasqueradeBit: 14})
	}
	if d.Name == "ipvs" && errors.Is(err, dataplane.ErrUnsupported) {
		t.Skipf("%v; it runs where ip_vs is: make test-vm BACKEND=ipvs", err)
	}
	if err != nil && (kerneltest.Required() || errors.Is(err, dataplane.ErrUnsupported) || os.Geteuid() != 0) {
		kerneltest.Unable(t, err)
	}
}

// newSite makes a lab and starts an agent on its first node.
func newSite(t *testing.T, backend string, objects []any, flags ...string) *site {
	t.Helper()
	lab, err := netlab.New(t.Context(), netlab.Config{Nodes: 2, Pods: 4, Clients: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{t: t, lab: lab, node: lab.Nodes[0], dir: t.TempDir(), socket: filepath.Join(t.TempDir(), "agent.sock")}
	s.env = append(os.Environ(), asSwitchyard+"=1", "XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "lock"))
	for _, p := range []string{"10.96.0.0/16", "fd96::/112", "10.97.0.0/16", "fd97::/112", "10.98.0.0/16", "fd98::/112"} {
		if err := lab.Announce(netip.MustParsePrefix(p), s.node); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range lab.Hosts() {
		for _, protocol := range []string{netlab.TCP, netlab.UDP} {
			if _, err := h.Serve(protocol, podPort); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.write(append(objects, s.nodeObject())...)
	s.start(backend, flags...)
	return s
}

// podPort is where every host of the lab answers.
const podPort = 8080

func (s *site) start(backend string, flags ...string) {
	s.t.Helper()
	cidrs := netlab.ClusterCIDRs()
	args := append([]string{"run", "--backend=" + backend, "--manifests=" + s.dir, "--hostname-override=" + s.node.Name, "--socket=" + s.socket,
		"--cluster-cidr=" + cidrs[0].String() + "," + cidrs[1].String(), "--healthz-bind-address=", "--metrics-bind-address="}, flags...)
	s.agent = s.command(args...)
	if err := s.node.Start(s.agent); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		s.stop()
		if s.t.Failed() {
			s.t.Logf("the agent wrote:\n%s", s.log.String())
		}
	})
	for deadline := time.Now().Add(netlab.Patient(30 * time.Second)); time.Now().Before(deadline); {
		if code, out, _ := s.ask("status", "-o", "json"); code == 0 && strings.Contains(out, `"ready": true`) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatal("the agent does not become ready")
}

// command is the command itself, to run on the node.
func (s *site) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append(args, "--ebpf-pin-dir="+s.node.PinDir, "--ebpf-cgroup-root="+s.node.CgroupRoot, "--lock-dir="+lockDir())...)
	cmd.Env, cmd.Stderr = s.env, &s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// stop ends the agent; once is enough.
func (s *site) stop() {
	if s.agent.ProcessState == nil {
		_ = s.agent.Process.Signal(syscall.SIGTERM)
		_ = s.agent.Wait()
	}
}

// ask runs a command of the command line against the agent.
func (s *site) ask(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = execute(context.Background(), append(args, "--socket", s.socket), &out, &errs)
	return code, out.String(), errs.String()
}

// askJSON decodes the answer of a command.
func (s *site) askJSON(answer any, args ...string) error {
	code, out, errs := s.ask(append(args, "-o", "json")...)
	if code != 0 && out == "" {
		return fmt.Errorf("switchyard %s: %s", strings.Join(args, " "), errs)
	}
	return json.Unmarshal([]byte(out), answer)
}

// shell runs a command on the node.
func (s *site) shell(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.node.Run(ctx, "env", s.env[len(s.env)-1], "sh", "-c", command)
}

// write makes these all objects that there are.
func (s *site) write(objects ...any) {
	s.t.Helper()
	var docs [][]byte
	for _, o := range objects {
		doc, err := yaml.Marshal(o)
		if err != nil {
			s.t.Fatal(err)
		}
		docs = append(docs, doc)
	}
	draft := filepath.Join(s.dir, ".objects.yaml")
	if err := os.WriteFile(draft, bytes.Join(docs, []byte("---\n")), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(draft, filepath.Join(s.dir, "objects.yaml")); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) nodeObject() *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: s.node.Name, Labels: map[string]string{corev1.LabelTopologyZone: "zone-a"}},
	}
	for _, a := range s.node.Addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return n
}

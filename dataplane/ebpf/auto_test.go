package ebpf

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// podProcess is a process in a network namespace and in the test's cgroup.
type podProcess struct {
	t   *testing.T
	pid int
}

func startPod(t *testing.T) podProcess {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return podProcess{t, cmd.Process.Pid}
}

// run runs a command in the pod's network namespace.
func (p podProcess) run(command string) {
	p.t.Helper()
	out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", p.pid), "sh", "-ec", command).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// connect is connectHere in the pod.
func (p podProcess) connect(b *accelerated) (endpoint string) {
	p.t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Inside(ns, func() (err error) {
		endpoint, err = connectHere(b, netip.MustParseAddrPort(autoVIP))
		return err
	}); err != nil {
		p.t.Fatal(err)
	}
	return endpoint
}

// autoVIP is the Service of these tests, and autoLong how long a change may take.
const (
	autoVIP  = "10.96.0.1:80"
	autoLong = 30 * time.Second
)

// becomes waits until a connection gets an endpoint; "": it is left to packets.
func (p podProcess) becomes(b *accelerated, endpoint string) {
	p.t.Helper()
	for deadline := time.Now().Add(autoLong); ; time.Sleep(20 * time.Millisecond) {
		got := p.connect(b)
		if got == endpoint {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("after %s a connection gets %q, want %q", autoLong, got, endpoint)
		}
	}
}

// In mode auto a pod is translated once its network namespace was looked into,
// and until something there translates.
func TestModeAuto(t *testing.T) {
	needAuto(t)
	o := testOptions(t)
	o.SocketLB = Auto
	b := openBackend(t, o)
	const endpoint = "10.40.1.1:80"
	pod := startPod(t)
	pod.run("ip link set lo up; ip addr add 10.40.0.7/32 dev lo; ip route add default dev lo")
	client := netip.MustParseAddr("10.40.0.7")
	if w := b.SocketsOf(client); w.AtSocket {
		t.Errorf("before the first Sync: %s", w.Why)
	}
	mustSync(t, b, nil, snapshot(web("a", autoVIP, endpoint)))
	leadsTo(t, b, autoVIP, endpoint)
	pod.becomes(b, endpoint)
	if w := b.SocketsOf(client); !w.AtSocket {
		t.Errorf("its connections are said to be left: %s", w.Why)
	}
	if w := b.SocketsOf(netip.MustParseAddr("10.40.0.8")); w.AtSocket || !strings.Contains(w.Why, "not known") {
		t.Errorf("connections of a pod that nobody knows are said to be translated: %s", w.Why)
	}
	for _, m := range [][2]string{
		{"nft 'add table ip mesh; add chain ip mesh out { type nat hook output priority -100; }; add rule ip mesh out tcp dport 80 redirect to :15001'", "nft delete table ip mesh"},
		{"nft 'add table inet mesh; add chain inet mesh out { type nat hook output priority -100; }; add rule inet mesh out counter'", "nft delete table inet mesh"},
		{"iptables-legacy -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001", "iptables-legacy -t nat -F OUTPUT"},
		{"ip6tables-legacy -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001", "ip6tables-legacy -t nat -F OUTPUT"},
	} {
		pod.run(m[0])
		pod.becomes(b, "")
		time.Sleep(3 * time.Second)
		if got := pod.connect(b); got != "" {
			t.Errorf("with %s a connection gets %s", m[0], got)
		}
		if w := b.SocketsOf(client); w.AtSocket || !strings.Contains(w.Why, "OUTPUT") {
			t.Errorf("with %s its connections are said to be translated: %s", m[0], w.Why)
		}
		pod.run(m[1])
		pod.becomes(b, endpoint)
	}
	// What is not in the way of what goes out changes nothing for long.
	pod.run("nft 'add table ip other; add chain ip other pre { type nat hook prerouting priority -100; }; add rule ip other pre counter; add chain ip other out { type filter hook output priority 0; }; add rule ip other out counter'")
	pod.becomes(b, endpoint)
	if s := b.Sockets(); s.Namespaces < 1 || s.Mode != string(Auto) || s.Base != "memory" {
		t.Errorf("it says %+v", s)
	}
}

// A pod of a cluster that is inside a container is left to packets: its address
// for a Service may be one of that cluster. The container itself is not.
func TestModeAutoLeavesNestedClustersAlone(t *testing.T) {
	needAuto(t)
	o := testOptions(t)
	o.SocketLB = Auto
	b := openBackend(t, o)
	const endpoint = "10.40.1.1:80"
	mustSync(t, b, nil, snapshot(web("a", autoVIP, endpoint)))
	container, inner := startPod(t), startPod(t)
	inner.run("ip addr add 10.40.0.9/32 dev lo")
	container.becomes(b, endpoint)
	inner.becomes(b, endpoint) // nothing tells them apart yet
	addVeth(t, "outer", container)
	container.run("ip link set outer up")
	container.run(fmt.Sprintf("ip link add inner up type veth peer name eth0 netns %d", inner.pid))
	inner.run("ip link set eth0 up")
	inner.becomes(b, "")
	if w := b.SocketsOf(netip.MustParseAddr("10.40.0.9")); w.AtSocket || !strings.Contains(w.Why, "another network namespace") {
		t.Errorf("its connections are said to be translated: %+v", w)
	}
	time.Sleep(3 * time.Second)
	if got := container.connect(b); got != endpoint {
		t.Errorf("the container's connection gets %q, want %q: %v", got, endpoint, b.Sockets().LeftNamespaces)
	}
	if got := inner.connect(b); got != "" {
		t.Errorf("the inner pod's connection gets %q", got)
	}
}

// A restart finds what the agent before knew, and looks at it again.
func TestModeAutoAfterARestart(t *testing.T) {
	needAuto(t)
	o := testOptions(t)
	o.SocketLB = Auto
	b := openBackend(t, o)
	const endpoint = "10.40.1.1:80"
	want := snapshot(web("a", autoVIP, endpoint))
	pod, gone := startPod(t), uint64(4711)
	mustSync(t, b, nil, want)
	pod.becomes(b, endpoint)
	if err := b.sockets.programs.Maps[programs.SockMapNamespaces].Put(gone, uint32(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBackend(t, o)
	if got := pod.connect(b); got != endpoint {
		t.Errorf("while no agent looks a connection gets %q", got)
	}
	pod.run("nft 'add table ip mesh; add chain ip mesh out { type nat hook output priority -100; }; add rule ip mesh out tcp dport 80 redirect to :15001'")
	mustSync(t, b, nil, want)
	pod.becomes(b, "")
	var value uint32
	for deadline := time.Now().Add(autoLong); b.sockets.programs.Maps[programs.SockMapNamespaces].Lookup(gone, &value) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a namespace that is gone is still known")
		}
	}
}

var _ dataplane.SocketTranslator = (*accelerated)(nil)

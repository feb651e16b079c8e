package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// ownNetns runs the test once more, in a network namespace of its own, and
// reports whether this is that run.
func ownNetns(t *testing.T) bool {
	t.Helper()
	if !(kerneltest.Child{}).Again(t) {
		return false
	}
	kerneltest.LoopbackUp(t)
	return true
}

// process is the agent as a process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	text lockedBuffer // of stderr
}

func (p *process) stderr() string { return p.text.String() }

// lockDir is where the agents of tests have their locks, not those of this machine.
func lockDir() string { return filepath.Join(os.TempDir(), "switchyard-test-locks") }

// start starts `switchyard ARGS`; change, if not nil, may alter the command.
func start(t *testing.T, change func(*exec.Cmd), args ...string) *process {
	t.Helper()
	args = append(args, "--lock-dir="+lockDir())
	if args[0] == "run" {
		args = append(args, "--socket=") // this machine may have an agent of its own
	}
	p := &process{cmd: exec.Command("/proc/self/exe", args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asSwitchyard+"=1")
	p.cmd.Stderr = &p.text
	p.cmd.WaitDelay = time.Second
	if change != nil {
		change(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// ended is the exit status, and what stderr's last line is.
func (p *process) ended(t *testing.T) (status int, lastLine string) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatalf("still runs after a minute; stderr: %s", p.stderr())
	}
	lines := strings.Split(strings.TrimSpace(p.stderr()), "\n")
	return p.cmd.ProcessState.ExitCode(), lines[len(lines)-1]
}

func get(url string) (int, string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// within waits until something is true.
func (p *process) within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s; stderr: %s", what, p.stderr())
}

const shop = `
{apiVersion: v1, kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2]}]
`

func writeFile(t *testing.T, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func rules(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(save).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", save, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
	}
	return strings.Join(lines, "")
}

// TestStartsWithKubeProxysFile is the agent with a file of kubeadm's, and with
// one that has every field.
func TestStartsWithKubeProxysFile(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	for _, c := range []struct{ file, health, metrics string }{
		{"kubeadm.yaml", "http://127.0.0.1:10256", "http://127.0.0.1:10249"},
		{"every-field.yaml", "http://127.0.0.1:11256", "http://127.0.0.2:10249"},
	} {
		t.Run(c.file, func(t *testing.T) {
			dir, config := t.TempDir(), t.TempDir()
			writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
			text, err := os.ReadFile("../../agent/config/testdata/" + c.file)
			if err != nil {
				t.Fatal(err)
			}
			file := writeFile(t, filepath.Join(config, "config.conf"), string(text))
			p := start(t, nil, "run", "--config="+file, "--hostname-override=node-1", "--manifests="+dir)
			p.within(t, "ready", func() bool { code, _ := get(c.health + "/readyz"); return code == 200 })
			for url, want := range map[string]string{
				c.health + "/healthz":    `"nodeEligible":true`,
				c.health + "/livez":      `"healthy":true`,
				c.metrics + "/healthz":   "ok",
				c.metrics + "/metrics":   "kubeproxy_sync_proxy_rules_duration_seconds_count",
				c.metrics + "/proxyMode": "iptables",
				c.metrics + "/configz":   `"clusterCIDR":"10.244.0.0/16`,
				c.metrics + "/flagz":     "hostname-override=node-1",
				c.metrics + "/statusz":   "Backend: iptables",
				c.health + "/readyz":     `"ready":true`,
			} {
				if code, body := get(url); code != 200 || !strings.Contains(body, want) {
					t.Errorf("%s: %d, %s; want %s", url, code, body, want)
				}
			}
			if code, _ := get(c.metrics + "/debug/pprof/cmdline"); (code == 200) != (c.file == "every-field.yaml") {
				t.Errorf("/debug/pprof: %d", code)
			}
			if !strings.Contains(rules(t), "10.244.1.2:8080") {
				t.Error("the kernel does not forward to the endpoint")
			}

			writeFile(t, file, strings.Replace(string(text), "conntrack:\n", "conntrack:\n  # more\n", 1))
			writeFile(t, file, strings.NewReplacer("tcpBeLiberal: false", "tcpBeLiberal: true", "udpStreamTimeout: 4m", "udpStreamTimeout: 5m").Replace(string(text)))
			p.within(t, "the change is taken up", func() bool { return strings.Contains(p.stderr(), "is taken up") })
			before := rules(t)
			writeFile(t, file, strings.Replace(string(text), "10.244.0.0/16", "10.245.0.0/16", 1))
			code, line := p.ended(t)
			if code != 1 || !strings.Contains(line, "clusterCIDR") || !strings.Contains(line, "started again") {
				t.Errorf("ended with %d: %s", code, line)
			}
			if rules(t) != before {
				t.Error("forwarding is not as it was")
			}
		})
	}
}

// TestCleanup: of what is in the kernel, Switchyard's and kube-proxy's goes and
// all else stays.
func TestCleanup(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	const kubelet = "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n"
	const both = "*nat\n:KUBE-SERVICES - [0:0]\n:SWITCHYARD-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\n-A OUTPUT -j SWITCHYARD-SERVICES\nCOMMIT\n"
	for _, c := range []struct {
		args       string
		theirsGoes bool
	}{{"cleanup", false}, {"cleanup --kube-proxy", true}, {"run --cleanup", true}} {
		// This machine may have an agent of its own.
		c.args += " --ebpf-pin-dir=" + filepath.Join(t.TempDir(), "none")
		for _, input := range []string{kubelet, both} {
			cmd := exec.Command("iptables-restore", "--noflush")
			cmd.Stdin = strings.NewReader(input)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		if code, _ := start(t, nil, strings.Fields(c.args)...).ended(t); code != 0 {
			t.Errorf("%s: status %d", c.args, code)
		}
		got := rules(t)
		for chain, want := range map[string]bool{"KUBE-FIREWALL": true, "SWITCHYARD-SERVICES": false, "KUBE-SERVICES": !c.theirsGoes} {
			if strings.Contains(got, chain) != want {
				t.Errorf("%s: %s is there: %v", c.args, chain, !want)
			}
		}
	}
}

// TestInitOnly: what needs full root privileges is done, and forwarding is as it was.
func TestInitOnly(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	before := rules(t)
	p := start(t, nil, "run", "--init-only", "--backend=iptables", "--hostname-override=node-1", "--manifests="+t.TempDir())
	if code, _ := p.ended(t); code != 0 {
		t.Errorf("status %d: %s", code, p.stderr())
	}
	if rules(t) != before {
		t.Error("forwarding is not as it was")
	}
}

// TestWhatIsMissing: what the machine does not give ends in one clear line at
// once, and forwarding stays as it is.
func TestWhatIsMissing(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	secret := writeFile(t, filepath.Join(dir, "secret"), "")
	if err := errors.Join(os.Chmod(secret, 0), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	nobody := func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for _, c := range []struct {
		name, args string
		change     func(*exec.Cmd)
		want       string
	}{
		{"a port in use", "--bind-address-hard-fail --healthz-bind-address=" + taken.Addr().String(), nil, "the health server cannot listen on " + taken.Addr().String()},
		{"the other port in use", "--bind-address-hard-fail --metrics-bind-address=" + taken.Addr().String(), nil, "the metrics server cannot listen on " + taken.Addr().String()},
		{"no permission", "--backend=iptables", nobody, "permission denied"},
		{"a file that may not be read", "--config=" + secret, nobody, secret + ": permission denied"},
		{"no iptables", "--backend=iptables", func(c *exec.Cmd) { c.Env = append(c.Env, "PATH=/nowhere") }, "not supported here"},
		{"no bpf file system", "--backend=ebpf --ebpf-pin-dir=" + dir, nil, "not supported here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := rules(t)
			args := append([]string{"run", "--hostname-override=node-1", "--manifests=" + dir}, strings.Fields(c.args)...)
			var code int
			var line string
			took := time.Hour
			for try := 0; try < 5 && took > 2*time.Second; try++ { // another try where the machine is busy
				from := time.Now()
				code, line = start(t, c.change, args...).ended(t)
				took = time.Since(from)
			}
			if took > 2*time.Second {
				t.Errorf("ended after %v", took)
			}
			if code != 1 || !strings.HasPrefix(line, "switchyard: ") || !strings.Contains(line, c.want) {
				t.Errorf("ended with %d: %q; want %q", code, line, c.want)
			}
			if rules(t) != before {
				t.Error("forwarding is not as it was")
			}
		})
	}
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestWrongInput: each ends in one line that names the flag, the value and what
// is allowed, before anything in the kernel changes.
func TestWrongInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string // in stderr
	}{
		{"run --backend magic", `--backend is "magic"; it can be auto, ebpf, nftables, iptables, ipvs`},
		{"run --proxy-mode userspace", `--proxy-mode is "userspace"; it can be auto, ebpf, nftables, iptables, ipvs`},
		{"cleanup --backend magic", `--backend is "magic"; it can be auto, ebpf, nftables, iptables, ipvs`},
		{"run --socket-lb pods", `--socket-lb is "pods"; it can be auto, all, tcp, node, off`},
		{"run --iptables-mode xtables", `--iptables-mode is "xtables"; it can be auto, nft or legacy`},
		{"run --iptables-masquerade-bit 32", `--iptables-masquerade-bit is "32"; it can be 0 to 31`},
		{"run --ebpf-max-endpoints 0", `--ebpf-max-endpoints is "0"; it can be 1 to 134217728`},
		{"run --ipvs-scheduler random", `--ipvs-scheduler is "random"; it can be rr, wrr, lc`},
		{"run --ipvs-exclude-cidrs 10.0.0.1", `--ipvs-exclude-cidrs is "10.0.0.1"; it must be an address range`},
		{"run --ipvs-tcp-timeout 1500ms", `--ipvs-tcp-timeout is "1.5s"; it must be whole seconds`},
		{"run --ipvs-drain-timeout 0s", `--ipvs-drain-timeout is "0s"; it must be more than 0`},
		{"run --cluster-cidr 10.244.0.0", `--cluster-cidr is "10.244.0.0"; it must be an address range`},
		{"run --nodeport-addresses 10.0.0.0/33", "10.0.0.0/33"},
		{"run --detect-local-mode Magic", "Magic"},
		{"run --detect-local-mode BridgeInterface", "BridgeInterface needs the name of an interface"},
		{"run --healthz-bind-address 10256", `--healthz-bind-address is "10256"; it must be an IP address and a port`},
		{"run --metrics-bind-address localhost:10249", `--metrics-bind-address is "localhost:10249"; it must be an IP address and a port`},
		{"run --verify-interval 0s", `--verify-interval is "0s"; it must be more than 0`},
		{"run --logging-format xml", `--logging-format is "xml"; it can be text or json`},
		{"run --manifests " + file, `it must be a directory that is there`},
		{"run --manifests /nowhere", `--manifests is "/nowhere"; it must be a directory that is there`},
		{"run --apiserver 192.0.2.1", `it must be a host and a port`},
		{"run --manifests . --kubeconfig x", "--manifests excludes --kubeconfig, --master and --apiserver"},
		{"run --kubeconfig /nowhere/kubeconfig", "/nowhere/kubeconfig"},
		{"run --backend magic --verify-interval 0s", "--verify-interval"}, // the second fault is told too
		{"run --config /nowhere/config.conf", "/nowhere/config.conf: no such file or directory"},
		{"run --config " + file, "there is no document; it must have a KubeProxyConfiguration or a SwitchyardConfiguration"},
		{"run --config .", "read .: is a directory"},
		{"run --feature-gates Frob=true", "--feature-gates: unrecognized feature gate: Frob"},
		{"run --feature-gates Frob", `"Frob" must be NAME=true or NAME=false`},
		{"run --bind-address node-1", `--bind-address is "node-1"; it must be an IP address`},
		{"run --write-config-to /nowhere/x", "/nowhere/x: no such file or directory"},
		{"run --frob", "unknown flag: --frob"},
		{"run something", "unknown command"},
		{"status --socket /nowhere/agent.sock", "no agent answers on socket /nowhere/agent.sock: start `switchyard run` on this node, or give the --socket"},
		{"status -o xml", `--output is "xml"; it can be table, json, yaml`},
		{"get services -o xml", `--output is "xml"; it can be table, wide, json, yaml`},
		{"get pods", `unknown command "pods" for "switchyard get"`},
		{"explain", "explain takes one address and port, as in 10.96.0.1:443"},
		{"explain web:80", `"web:80" is no address and port, as in 10.96.0.1:443`},
		{"explain 10.0.0.1:80/icmp", `protocol "icmp"; it can be TCP, UDP or SCTP`},
		{"explain --from me 10.0.0.1:80", `--from is "me"; it must be an IP address`},
		{"verify now", `unknown command "now" for "switchyard verify"`},
		{"doctor --back_end userspace", "unknown flag: --back_end"},
		{"run --proxy_mode userspace", `userspace`},
		{"doctor --backend userspace", `--backend is "userspace"; it can be auto`},
	} {
		t.Run(c.args, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := execute(t.Context(), strings.Fields(c.args), &out, &errs); code == 0 {
				t.Error("exit status 0")
			}
			if got := errs.String(); !strings.Contains(got, c.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("stderr is %q; want one line with %q", got, c.want)
			}
		})
	}
}

// TestUsageNamesTypes: pflag takes a word in back quotes for a flag's type.
func TestUsageNamesTypes(t *testing.T) {
	root := newRoot()
	for _, cmd := range append(root.Commands(), root) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if strings.Contains(f.Usage, "`") {
				t.Errorf("%s --%s: back quotes in %q", cmd.Name(), f.Name, f.Usage)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := execute(t.Context(), []string{"version"}, &out, &errs); code != 0 || out.String() != version+"\n" {
		t.Errorf("status %d, stdout %q, stderr %q", code, out.String(), errs.String())
	}
}

// TestNameOfTheCall: a DaemonSet of kube-proxy's calls the binary by that name.
func TestNameOfTheCall(t *testing.T) {
	for call, want := range map[string]string{
		"/usr/local/bin/kube-proxy --config=x": "run --config=x",
		"bin/switchyard run --config=x":        "run --config=x",
		"switchyard":                           "",
	} {
		if got := strings.Join(commandLine(strings.Fields(call)), " "); got != want {
			t.Errorf("%s: %q, want %q", call, got, want)
		}
	}
}

func TestWritesItsConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.conf")
	var out, errs bytes.Buffer
	if code := execute(t.Context(), []string{"run", "--cluster-cidr=10.0.0.0/8", "--write-config-to", file}, &out, &errs); code != 0 {
		t.Fatalf("status %d, stderr %q", code, errs.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"clusterCIDR: 10.0.0.0/8", "kind: SwitchyardConfiguration", "healthzBindAddress: 0.0.0.0:10256"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestTopologyFitsTogether(t *testing.T) {
	topo := DefaultTopology()
	seen := map[netip.Addr]string{topo.Control4: "control", topo.Control6: "control"}
	ports := map[string]bool{}
	for _, leaf := range topo.leaves() {
		if ports[leaf.Port] || len(leaf.Port) > 15 {
			t.Errorf("%s: port name %q is taken or too long", leaf.Namespace, leaf.Port)
		}
		ports[leaf.Port] = true
		for _, p := range leaf.Addrs {
			if who := seen[p.Addr()]; who != "" {
				t.Errorf("%s: %s has address %s too", leaf.Namespace, who, p.Addr())
			}
			seen[p.Addr()] = leaf.Namespace
			if !topo.Lan4.Contains(p.Addr()) && !topo.Lan6.Contains(p.Addr()) {
				t.Errorf("%s: address %s is not on the LAN", leaf.Namespace, p.Addr())
			}
		}
		for _, r := range leaf.Routes {
			if !topo.Lan4.Contains(r.Via) && !topo.Lan6.Contains(r.Via) {
				t.Errorf("%s: route to %s via %s, which is no neighbour", leaf.Namespace, r.To, r.Via)
			}
		}
	}
	for _, n := range topo.Nodes {
		for inner, outer := range map[netip.Prefix]netip.Prefix{n.Pods4: topo.Pods4, n.Pods6: topo.Pods6} {
			if !outer.Contains(inner.Addr()) || inner.Bits() <= outer.Bits() {
				t.Errorf("%s: pod range %s is not within %s", n.Name, inner, outer)
			}
		}
	}
	if got := topo.clusterIP().String(); got != "10.96.0.1" {
		t.Errorf("Service kubernetes has %s", got)
	}
}

// The outside client must not be able to bypass Services.
func TestOutsideHasNoRouteToPods(t *testing.T) {
	topo := DefaultTopology()
	for _, leaf := range topo.leaves() {
		if leaf.Namespace != Outside {
			continue
		}
		for _, r := range leaf.Routes {
			for _, n := range topo.Nodes {
				if r.To.Overlaps(n.Pods4) || r.To.Overlaps(n.Pods6) {
					t.Errorf("route to %s reaches pods of %s", r.To, n.Name)
				}
			}
		}
	}
}

func TestCNIConfig(t *testing.T) {
	data, err := cniConfig(DefaultTopology().Nodes[1])
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Plugins []struct {
			Type string
			IPAM struct {
				Ranges [][]struct{ Subnet string }
			}
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Plugins) != 1 || got.Plugins[0].Type != "ptp" {
		t.Fatalf("plugins: %+v", got.Plugins)
	}
	var ranges []string
	for _, r := range got.Plugins[0].IPAM.Ranges {
		ranges = append(ranges, r[0].Subnet)
	}
	if want := []string{"10.244.2.0/24", "fd00:244:0:2::/64"}; !slices.Equal(ranges, want) {
		t.Errorf("ranges %v, want %v", ranges, want)
	}
}

// Every template renders to what its reader can parse, with our values in place.
func TestTemplates(t *testing.T) {
	cases := map[string]struct {
		text string
		data any
		want []string
		yaml bool
	}{
		"containerd.toml": {
			text: containerdTemplate,
			data: map[string]string{"Root": "/lab/root", "Image": Image, "CNIPlugins": CNIPlugins, "CNIConfig": "/lab/cni"},
			want: []string{`root = "/lab/root"`, `sandbox_image = "switchyard.test/agnhost:lab"`, `conf_dir = "/lab/cni"`},
		},
		"kubelet.yaml": {
			text: kubeletTemplate,
			data: map[string]string{"Resolv": "/lab/resolv.conf", "Cgroup": "switchyard-e2e/node1"},
			want: []string{"cgroupRoot: /switchyard-e2e/node1", "resolvConf: /lab/resolv.conf", "failCgroupV1: false"}, yaml: true,
		},
		"nodes.yaml": {
			text: nodesTemplate, data: DefaultTopology().Nodes,
			want: []string{"name: node1", "name: node2", `podCIDRs: ["10.244.1.0/24", "fd00:244:0:1::/64"]`, "topology.kubernetes.io/zone: zone2"},
		},
		"kubeconfig.yaml": {
			text: kubeconfigTemplate,
			data: map[string]string{"Server": "https://10.0.0.1:6443", "CA": "/lab/ca.crt", "User": "system:node:node1", "Token": "secret"},
			want: []string{`server: "https://10.0.0.1:6443"`, `token: "secret"`, `user: "system:node:node1"`}, yaml: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			out, err := render(name, c.text, c.data)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
			var v any
			if c.yaml {
				if err := yaml.Unmarshal(out, &v); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRenderMissesNothing(t *testing.T) {
	if out, err := render("t", "{{.Absent}}", map[string]string{}); err == nil {
		t.Errorf("a missing value rendered as %q", out)
	}
}

func TestTokenFile(t *testing.T) {
	got := string(tokenFile([]user{
		{Name: "admin", Groups: "system:masters", token: "t1"},
		{Name: "system:kube-proxy", token: "t2"},
	}))
	want := "t1,admin,admin,\"system:masters\"\nt2,system:kube-proxy,system:kube-proxy\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAgentArgs(t *testing.T) {
	topo := DefaultTopology()
	common := []string{
		"--kubeconfig=/k", "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16,fd00:244::/56",
		"--healthz-bind-address=0.0.0.0:10256", "--metrics-bind-address=127.0.0.1:10249",
	}
	cases := map[string]struct {
		agent Agent
		want  []string
	}{
		"ours": {Agent{Name: Switchyard, Backend: "ebpf"}, []string{"/p", "run", "--backend=ebpf", "--ebpf-cgroup-root=/c"}},
		"the stand-in": {Agent{Name: KubeProxy, Backend: "nftables"},
			[]string{"/p", "--proxy-mode=nftables", "--conntrack-max-per-core=0"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := c.agent.args("/p", "/k", "/c", topo.Nodes[0], topo)
			if want := slices.Concat(c.want, common); !slices.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestParsePods(t *testing.T) {
	got, err := parsePods([]byte(`{"items": [
		{"metadata": {"name": "a", "uid": "1"}, "spec": {"nodeName": "node1"},
		 "status": {"conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]}},
		{"metadata": {"name": "b", "uid": "2", "deletionTimestamp": "2026-11-01T00:00:00Z"}, "spec": {"nodeName": "node2"},
		 "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
		{"metadata": {"name": "c", "uid": "3"}, "spec": {}, "status": {}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pod{
		{Name: "a", UID: "1", Node: "node1", Ready: true},
		{Name: "b", UID: "2", Node: "node2", Ending: true},
		{Name: "c", UID: "3"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := parsePods([]byte("error")); err == nil {
		t.Error("what is no list should be an error")
	}
}

func TestUnified(t *testing.T) {
	for cgroups, want := range map[string]string{
		"0::/switchyard-e2e/node1/kubepods/pod1/c\n":                "/switchyard-e2e/node1/kubepods/pod1/c",
		"9:memory:/kubepods/pod1/c\n0::/switchyard-e2e/node1/sys\n": "/switchyard-e2e/node1/sys",
		"9:memory:/kubepods/pod1/c\n":                               "/",
	} {
		if got := unified(cgroups); got != want {
			t.Errorf("%q: got %s, want %s", cgroups, got, want)
		}
	}
}

func TestParallel(t *testing.T) {
	first, second := make(chan bool), make(chan bool)
	err := parallel(
		func() error { first <- true; <-second; return nil },
		func() error { <-first; second <- true; return nil }, // only if both run at once
	)
	if err != nil {
		t.Error(err)
	}
}

func TestWait(t *testing.T) {
	soon := errors.New("not yet")
	cases := map[string]struct {
		answers []error // of the probe, the last one for ever
		want    error
		calls   int // at least
	}{
		"at once":                 {answers: []error{nil}, calls: 1},
		"the second time":         {answers: []error{soon, nil}, calls: 2},
		"never":                   {answers: []error{soon}, want: soon, calls: 2},
		"the program has crashed": {answers: []error{soon, errEnded, nil}, want: errEnded, calls: 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			calls := 0
			err := Wait(t.Context(), "it", 300*time.Millisecond, func(context.Context) error {
				calls++
				return c.answers[min(calls, len(c.answers))-1]
			})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if calls < c.calls {
				t.Errorf("%d calls, want at least %d", calls, c.calls)
			}
		})
	}
}

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
)

var backends = []string{"auto", "iptables", "ebpf"}

// complete parses a command line.
func complete(t *testing.T, args ...string) (*Config, error) {
	t.Helper()
	o := &Options{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	c, err := o.Complete()
	if err != nil {
		return nil, err
	}
	return c, c.Validate(backends)
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const (
	kubeProxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	ownHead       = "apiVersion: config.switchyard.io/v1alpha1\nkind: SwitchyardConfiguration\n"
)

// TestWrongFiles: a message names the file, the field, the value and what is allowed.
func TestWrongFiles(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no document", "# nothing\n", "there is no document; it must have a KubeProxyConfiguration or a SwitchyardConfiguration"},
		{"another kind", "apiVersion: v1\nkind: ConfigMap\n", `document 1: it is apiVersion "v1", kind "ConfigMap"; it can be kubeproxy.config.k8s.io/v1alpha1, KubeProxyConfiguration or`},
		{"a version to come", "apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n", `it is apiVersion "kubeproxy.config.k8s.io/v1beta1"`},
		{"twice", kubeProxyHead + "---\n" + kubeProxyHead, "document 2: a second KubeProxyConfiguration; there can be one"},
		{"not YAML", "\tmode: x", "document 1: "},
		{"a wrong type", kubeProxyHead + "oomScoreAdj: many\n", "oomScoreAdj"},
		{"a wrong time", kubeProxyHead + "configSyncPeriod: soon\n", `invalid duration "soon"`},
		{"an unknown mode", kubeProxyHead + "mode: userspace\n", `mode is "userspace"; it can be auto, iptables, ebpf`},
		{"a mode without a backend", kubeProxyHead + "mode: nftables\n", `mode is "nftables"; this mode of kube-proxy has no backend here yet`},
		{"an unknown gate", kubeProxyHead + "featureGates: {Frob: true}\n", "featureGates: unrecognized feature gate: Frob"},
		{"a locked gate", kubeProxyHead + "featureGates: {NFTablesProxyMode: false}\n", "cannot set feature gate NFTablesProxyMode to false, feature is locked to true"},
		{"ipvs without its gate", kubeProxyHead + "mode: ipvs\nfeatureGates: {KubeProxyIPVS: false}\n", "the feature gate KubeProxyIPVS is off"},
		{"a wrong range", kubeProxyHead + "clusterCIDR: 10.244.0.0\n", `config.conf: clusterCIDR is "10.244.0.0"; it must be an address range`},
		{"a wrong address", kubeProxyHead + "healthzBindAddress: localhost:1\n", `healthzBindAddress is "localhost:1"; it must be an IP address and a port`},
		{"a wrong bit", kubeProxyHead + "iptables: {masqueradeBit: 32}\n", `iptables.masqueradeBit is "32"; it can be 0 to 31`},
		{"a time that is too long", kubeProxyHead + "iptables: {minSyncPeriod: 1m}\n", `iptables.minSyncPeriod is "1m0s"; it must not be more than syncPeriod, which is 30s`},
		{"a wrong detector", kubeProxyHead + "detectLocalMode: Magic\n", `detectLocalMode is "Magic"; it can be ClusterCIDR, NodeCIDR,`},
		{"a detector without its value", kubeProxyHead + "detectLocalMode: BridgeInterface\n", "needs the name of an interface"},
		{"a size that no map can have", ownHead + "ebpf: {maxEndpoints: -1}\n", `SwitchyardConfiguration.ebpf.maxEndpoints is "-1"; it can be 1 to`},
		{"a field that ours does not have", ownHead + "backed: ebpf\n", `unknown field "backed"`},
		{"a field of ours twice", ownHead + "backend: ebpf\nbackend: auto\n", `"backend" already set`},
		{"an unknown backend", ownHead + "backend: magic\n", `config.conf: SwitchyardConfiguration.backend is "magic"; it can be auto, iptables, ebpf`},
		{"an unknown iptables", ownHead + "iptables: {mode: xtables}\n", `SwitchyardConfiguration.iptables.mode is "xtables"; it can be auto, nft or legacy`},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, c.text)
			_, err := complete(t, "--config", file)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v; want %s: ... %q", err, file, c.want)
			}
		})
	}
}

// TestUnknownFields: kube-proxy takes a document with fields that it does not
// know, and warns; so is it here.
func TestUnknownFields(t *testing.T) {
	c, err := complete(t, "--config", write(t, kubeProxyHead+"frob: 1\nMode: iptables\nclusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.1.0.0/16\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`unknown field "frob"`, `unknown field "Mode"`, `"clusterCIDR" already set`} {
		if !slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("no warning of %s: %q", want, c.Warnings)
		}
	}
	if c.KubeProxy.Mode != "" || c.KubeProxy.ClusterCIDR != "10.1.0.0/16" {
		t.Errorf("read mode %q, clusterCIDR %q", c.KubeProxy.Mode, c.KubeProxy.ClusterCIDR)
	}
}

func TestKubeadmsFile(t *testing.T) {
	c, err := complete(t, "--config=testdata/kubeadm.yaml", "--hostname-override=Node-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 || len(c.Unheeded()) > 0 {
		t.Errorf("warned of %q, unheeded is %q", c.Warnings, c.Unheeded())
	}
	unsaid, k := Default(), &c.KubeProxy
	unsaid.KubeProxy.Mode, unsaid.KubeProxy.ClusterCIDR, unsaid.KubeProxy.HostnameOverride = "iptables", "10.244.0.0/16", "node-1"
	unsaid.KubeProxy.ClientConnection.Kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf"
	if d := differing(&unsaid.KubeProxy, k); len(d) > 0 {
		t.Errorf("not as the defaults are: %v", d)
	}
	if k.HealthzBindAddress != "0.0.0.0:10256" || k.MetricsBindAddress != "127.0.0.1:10249" {
		t.Errorf("serves on %s and %s", k.HealthzBindAddress, k.MetricsBindAddress)
	}
	if c.Backend() != "iptables" || c.MinInterval() != 0 || c.BehindLimit() != time.Minute || c.Switchyard.VerifyInterval.Duration != time.Minute {
		t.Errorf("backend %s, intervals %v, %v and %v", c.Backend(), c.MinInterval(), c.BehindLimit(), c.Switchyard.VerifyInterval.Duration)
	}
	if got := c.Conntrack(); got != conntrack.DefaultSettings() {
		t.Errorf("conntrack: %+v", got)
	}
}

func TestEveryField(t *testing.T) {
	c, err := complete(t, "--config=testdata/every-field.yaml")
	if err != nil {
		t.Fatal(err)
	}
	said := differing(&Default().KubeProxy, &c.KubeProxy)
	for _, path := range leaves(reflect.TypeFor[kubeproxy.KubeProxyConfiguration]()) {
		if !slices.ContainsFunc(said, func(s string) bool { return s == path || strings.HasPrefix(s, path+".") }) {
			t.Errorf("testdata/every-field.yaml does not set %s", path)
		}
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warned of %q", c.Warnings)
	}
	w, err := c.Watcher(nil, []dataplane.Family{dataplane.IPv4})
	if err != nil {
		t.Fatal(err)
	}
	d, api := c.Dataplane(nil, nil), c.API(nil, "n")
	for name, ok := range map[string]bool{
		"hostnameOverride":  w.NodeName == "node-1",
		"bindAddress":       len(w.NodeIPs) == 1 && w.NodeIPs[0].String() == "192.0.2.1",
		"masqueradeAll":     w.MasqueradeAll,
		"masqueradeBit":     d.MasqueradeBit == 10,
		"localhost":         !d.LocalhostNodePorts && !w.LocalhostNodePorts,
		"syncPeriod":        c.BehindLimit() == 40*time.Second,
		"minSyncPeriod":     c.MinInterval() == 2*time.Second,
		"detectLocal":       w.DetectLocal.Mode == "InterfaceNamePrefix" && w.DetectLocal.Interface == "veth" && len(w.DetectLocal.ClusterCIDRs) == 2,
		"nodePortAddresses": len(w.NodePortAddresses) == 2,
		"clientConnection":  api.QPS == 20 && api.Burst == 40 && api.ContentType == "application/json" && api.Kubeconfig != "",
		"metrics":           c.KubeProxy.MetricsBindAddress == "127.0.0.2:10249",
		"conntrack": c.Conntrack() == conntrack.Settings{MaxPerCore: 1000, Min: 2000, TCPEstablishedTimeout: time.Hour,
			TCPCloseWaitTimeout: 2 * time.Minute, TCPBeLiberal: true, UDPTimeout: 3 * time.Minute, UDPStreamTimeout: 4 * time.Minute},
		"ours": c.Switchyard.VerifyInterval.Duration == 30*time.Second,
	} {
		if !ok {
			t.Errorf("%s is not heeded: %+v %+v", name, w, d)
		}
	}
}

// TestFlagsBesideFiles: KUBE-PROXY §2.2; ours count always.
func TestFlagsBesideFiles(t *testing.T) {
	theirs := write(t, kubeProxyHead+"mode: iptables\nclusterCIDR: 10.1.0.0/16\nhostnameOverride: of-the-file\nlogging: {verbosity: 1}\n")
	ours := write(t, ownHead+"backend: iptables\nverifyInterval: 10s\n")
	for _, c := range []struct {
		name, args string
		ok         func(*Config) bool
	}{
		{"the file alone", "--config " + theirs, func(c *Config) bool { return c.KubeProxy.ClusterCIDR == "10.1.0.0/16" }},
		{"a flag that the file replaces", "--config " + theirs + " --cluster-cidr 10.2.0.0/16", func(c *Config) bool {
			return c.KubeProxy.ClusterCIDR == "10.1.0.0/16" && strings.Contains(strings.Join(c.Warnings, ""), "--cluster-cidr")
		}},
		{"the name of the Node", "--config " + theirs + " --hostname-override Node-1", func(c *Config) bool { return c.KubeProxy.HostnameOverride == "node-1" }},
		{"the log", "--config " + theirs + " -v 4", func(c *Config) bool { return c.KubeProxy.Logging.Verbosity == 4 }},
		{"the API server", "--config " + theirs + " --master http://192.0.2.1", func(c *Config) bool { return c.Master == "http://192.0.2.1" }},
		{"the backend", "--config " + theirs + " --backend ebpf", func(c *Config) bool {
			return c.Backend() == "ebpf" && slices.Equal(c.Unheeded(), []string{`mode: --backend is "ebpf"`})
		}},
		{"the mode", "--config " + theirs + " --proxy-mode ebpf", func(c *Config) bool { return c.Backend() == "iptables" }},
		{"two files", "--config " + theirs + " --switchyard-config " + ours, func(c *Config) bool {
			return c.Switchyard.VerifyInterval.Duration == 10*time.Second && c.KubeProxy.ClusterCIDR == "10.1.0.0/16"
		}},
		{"our file and kube-proxy's flags", "--switchyard-config " + ours + " --cluster-cidr 10.2.0.0/16", func(c *Config) bool {
			return c.Switchyard.VerifyInterval.Duration == 10*time.Second && c.KubeProxy.ClusterCIDR == "10.2.0.0/16" && len(c.Warnings) == 0
		}},
		{"our file and our flag", "--switchyard-config " + ours + " --backend auto", func(c *Config) bool { return c.Backend() == "auto" }},
		{"our file and a server that is off", "--switchyard-config " + ours + " --healthz-bind-address= --metrics-port=0", func(c *Config) bool {
			return c.KubeProxy.HealthzBindAddress == "" && c.KubeProxy.MetricsBindAddress == ""
		}},
		{"a list", "--config " + theirs + " --apiserver 192.0.2.1:6443,192.0.2.2:6443", func(c *Config) bool {
			return slices.Equal(c.Switchyard.APIServers, []string{"192.0.2.1:6443", "192.0.2.2:6443"})
		}},
		{"flags alone", "--proxy-mode iptables --nodeport-addresses primary,10.0.0.0/8", func(c *Config) bool {
			return c.Backend() == "iptables" && len(c.KubeProxy.NodePortAddresses) == 2
		}},
		{"nothing", "", func(c *Config) bool { return c.Backend() == "auto" }},
		{"a server that is off", "--healthz-port=0 --metrics-bind-address=", func(c *Config) bool {
			return c.KubeProxy.HealthzBindAddress == "" && c.KubeProxy.MetricsBindAddress == ""
		}},
		{"gates", "--feature-gates AllowServiceExternalIPs=false,ContextualLogging=true", func(c *Config) bool {
			return !c.Gate(gateExternalIPs) && c.Gate(GateFlagz) && len(c.Unheeded()) == 1
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := complete(t, strings.Fields(c.args)...)
			if err != nil {
				t.Fatal(err)
			}
			if !c.ok(got) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestEveryGateIsTaken that kube-proxy knows, with each value that it can have.
func TestEveryGateIsTaken(t *testing.T) {
	known := knownGates()
	if len(known) < 250 {
		t.Fatalf("%d gates", len(known))
	}
	for name, g := range known {
		for _, value := range []bool{true, false} {
			c := Default()
			c.KubeProxy.FeatureGates = map[string]bool{name: value}
			if errs := c.checkGates(); (len(errs) == 0) != (g.locked == nil || *g.locked == value) {
				t.Errorf("%s=%t: %v", name, value, errs)
			}
		}
	}
}

// TestWhatIsWrittenIsRead: by this program, and by kube-proxy, for the way back.
func TestWhatIsWrittenIsRead(t *testing.T) {
	c, err := complete(t, "--config=testdata/every-field.yaml", "--backend=ebpf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "out.yaml")
	if err := c.Write(file); err != nil {
		t.Fatal(err)
	}
	again, err := complete(t, "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	if live, anew := c.Changes(again); len(live)+len(anew) > 0 {
		t.Errorf("%v and %v differ", live, anew)
	}
	scheme := runtime.NewScheme()
	if err := kubeproxy.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	got, _, err := codecs.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		t.Fatalf("kube-proxy's decoder: %v", err)
	}
	if d := differing(&c.KubeProxy, got); len(d) > 0 {
		t.Errorf("kube-proxy's decoder reads other %v", d)
	}
}

// TestFlagsWithUnderscores: each flag may be written with underscores, as
// kube-proxy takes it, beside a file and without one.
func TestFlagsWithUnderscores(t *testing.T) {
	o := &Options{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.AddFlags(fs)
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	for _, name := range names {
		if f := fs.Lookup(strings.ReplaceAll(name, "-", "_")); f == nil || f.Name != name {
			t.Errorf("--%s is not known with underscores", name)
		}
	}
	for _, file := range []string{"", "--config=" + write(t, kubeProxyHead+"clusterCIDR: 10.0.0.0/8\n")} {
		args := []string{"--cluster_cidr=10.0.0.0/8", "--hostname_override=node-1"}
		if file != "" {
			args = append(args, file)
		}
		c, err := complete(t, args...)
		if err != nil || c.KubeProxy.ClusterCIDR != "10.0.0.0/8" || c.KubeProxy.HostnameOverride != "node-1" {
			t.Errorf("%q: %v", args, err)
		}
	}
}

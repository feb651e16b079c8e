// Package deploy has what a cluster applies. Its tests render all of it, hold
// the Helm chart to the kustomizations, and read each object as the API does.
package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/switchyard-io/switchyard/agent/config"
)

var backends = []string{"auto", "ebpf", "nftables", "iptables", "ipvs"}

// program is the file of helm or kustomize, at the versions of
// tools/deploy/go.mod. The first call compiles it.
func program(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "tool", "-C", "../tools/deploy", "-n", name).Output()
	if err != nil {
		t.Fatalf("compiling %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

var (
	helm, kustomize string
	compiled        sync.Once
)

// tool runs helm or kustomize.
func tool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	compiled.Do(func() { helm, kustomize = program(t, "helm"), program(t, "kustomize") })
	cmd := exec.Command(map[string]string{"helm": helm, "kustomize": kustomize}[name], args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// Nothing of the user's own configuration counts.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// here is a folder below this one. Its files are read, so that go test knows what
// a result depends on that another program makes of them.
func here(t *testing.T, parts ...string) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(parts...))
	if err == nil {
		err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && !strings.Contains(path, "/test-") {
				_, err = os.ReadFile(path)
			}
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func chart(t *testing.T, backend string, settings ...string) []byte {
	t.Helper()
	args := []string{"template", "switchyard", here(t, "helm"), "--namespace=kube-system", "--kube-version=1.37", "--set=backend=" + backend}
	for _, s := range settings {
		args = append(args, "--set="+s)
	}
	return tool(t, "helm", args...)
}

// kustomized builds an overlay with components on top of it.
func kustomized(t *testing.T, backend string, components ...string) []byte {
	t.Helper()
	dir, err := os.MkdirTemp(here(t, "kustomize"), "test-") // kustomize refuses absolute paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	text := "resources: [../overlays/" + backend + "]\ncomponents: [" + strings.Join(components, ", ") + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return tool(t, "kustomize", "build", dir)
}

// objects reads documents by kind and name. The suffix of a generated name is
// left out: the two tools hash in ways of their own.
func objects(t *testing.T, text []byte) map[string]map[string]any {
	t.Helper()
	suffix := regexp.MustCompile(`\bswitchyard-[0-9a-z]{10}\b`)
	all := map[string]map[string]any{}
	for _, doc := range documents(t, suffix.ReplaceAll(text, []byte("switchyard-HASH"))) {
		var o map[string]any
		if err := yaml.UnmarshalStrict(doc, &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o == nil {
			continue // just comments
		}
		meta := o["metadata"].(map[string]any)
		all[fmt.Sprintf("%s %v/%v", o["kind"], meta["namespace"], meta["name"])] = o
	}
	return all
}

func documents(t *testing.T, text []byte) [][]byte {
	t.Helper()
	var all [][]byte
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, doc)
	}
}

// sorted puts the parts of a pod in order whose order means nothing.
func sorted(o map[string]any) {
	spec, ok := o["spec"].(map[string]any)
	if !ok || o["kind"] != "DaemonSet" {
		return
	}
	pod := spec["template"].(map[string]any)["spec"].(map[string]any)
	byName := func(list any) {
		slices.SortFunc(list.([]any), func(a, b any) int {
			return strings.Compare(fmt.Sprint(a.(map[string]any)["name"]), fmt.Sprint(b.(map[string]any)["name"]))
		})
	}
	byName(pod["volumes"])
	for _, c := range pod["containers"].([]any) {
		c := c.(map[string]any)
		byName(c["volumeMounts"])
		caps := c["securityContext"].(map[string]any)["capabilities"].(map[string]any)["add"].([]any)
		slices.SortFunc(caps, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	}
}

// configured makes the text of the agent's configuration what it says.
func configured(t *testing.T, o map[string]any) {
	t.Helper()
	data, _ := o["data"].(map[string]any)
	text, ok := data["config.yaml"].(string)
	if !ok {
		return
	}
	var docs []any
	for _, doc := range documents(t, []byte(text)) {
		var d any
		if err := yaml.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		docs = append(docs, d)
	}
	data["config.yaml"] = docs
}

// TestHelmIsKustomize: both ways to install make the same objects.
func TestHelmIsKustomize(t *testing.T) {
	for name, c := range map[string]struct {
		backend    string
		settings   []string
		components []string
	}{
		"auto":                 {backend: "auto"},
		"ebpf":                 {backend: "ebpf"},
		"nftables":             {backend: "nftables"},
		"iptables":             {backend: "iptables"},
		"ipvs":                 {backend: "ipvs"},
		"labels of kube-proxy": {"iptables", []string{"kubeProxyLabels=true"}, []string{"../components/kube-proxy-labels"}},
		"monitoring": {"ebpf", []string{"monitoring.podMonitor=true", "monitoring.prometheusRule=true", "monitoring.dashboard=true"},
			[]string{"../components/monitoring"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, want := objects(t, chart(t, c.backend, c.settings...)), objects(t, kustomized(t, c.backend, c.components...))
			if a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
				t.Fatalf("the chart makes %v, the kustomization %v", a, b)
			}
			for key := range want {
				for _, o := range []map[string]any{got[key], want[key]} {
					sorted(o)
					configured(t, o)
				}
				a, b := text(t, got[key]), text(t, want[key])
				if a != b {
					t.Errorf("%s: the chart makes\n%s\nthe kustomization makes\n%s", key, a, b)
				}
			}
		})
	}
}

func text(t *testing.T, o any) string {
	t.Helper()
	data, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestSchema reads each object strictly, as the type that the API has for it.
func TestSchema(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme, monitoringv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	all := []string{"monitoring.podMonitor=true", "monitoring.prometheusRule=true", "monitoring.dashboard=true"}
	for _, backend := range backends {
		for way, rendered := range map[string][]byte{"helm": chart(t, backend, all...), "kustomize": kustomized(t, backend, "../components/monitoring")} {
			seen := 0
			for _, doc := range documents(t, rendered) {
				if _, _, err := strict.Decode(doc, nil, nil); err != nil {
					t.Errorf("%s, %s: %v in\n%s", way, backend, err, doc)
				}
				seen++
			}
			if seen < 8 {
				t.Errorf("%s, %s: just %d objects", way, backend, seen)
			}
		}
	}
}

// TestConfiguration gives an agent what the manifests give it.
func TestConfiguration(t *testing.T) {
	for way, rendered := range map[string][]byte{
		"helm": chart(t, "ebpf", "apiServers={192.0.2.1:6443,[2001:db8::1]:6443}", "clusterCIDR=10.244.0.0/16", "detectLocalMode=ClusterCIDR",
			"kubeProxyConfiguration.ipvs.scheduler=lc", "switchyardConfiguration.verifyInterval=30s", "takeOver=true"),
		"kustomize": kustomized(t, "ebpf"),
	} {
		for _, o := range objects(t, rendered) {
			data, ok := o["data"].(map[string]any)
			if !ok {
				continue
			}
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(data["config.yaml"].(string)), 0o644); err != nil {
				t.Fatal(err)
			}
			opts := &config.Options{Backends: append([]string{"auto"}, backends...)}
			fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
			opts.AddFlags(fs)
			if err := fs.Parse([]string{"--config=" + file, "--backend=ebpf", "--hostname-override=node-1"}); err != nil {
				t.Fatal(err)
			}
			c, err := opts.Complete()
			if err == nil {
				err = c.Validate(opts.Backends)
			}
			if err != nil || len(c.Warnings) > 0 {
				t.Errorf("%s: %v, warnings %q", way, err, c.Warnings)
			}
			if way == "helm" && (len(c.Switchyard.APIServers) != 2 || !c.Switchyard.TakeOver || c.KubeProxy.IPVS.Scheduler != "lc") {
				t.Errorf("helm: %+v", c.Switchyard)
			}
		}
	}
}

// TestMetricsAreLocal: without monitoring nobody reaches metrics, configuration
// and flags from outside the node.
func TestMetricsAreLocal(t *testing.T) {
	for name, c := range map[string]struct {
		rendered []byte
		want     string
	}{
		"helm":                             {chart(t, "ebpf"), "127.0.0.1:10249"},
		"helm, rules alone":                {chart(t, "ebpf", "monitoring.prometheusRule=true"), "127.0.0.1:10249"},
		"helm, with monitoring":            {chart(t, "ebpf", "monitoring.podMonitor=true"), "0.0.0.0:10249"},
		"helm, with monitoring, overruled": {chart(t, "ebpf", "monitoring.podMonitor=true", "kubeProxyConfiguration.metricsBindAddress=192.0.2.1:10249"), "192.0.2.1:10249"},
		"kustomize":                        {kustomized(t, "ebpf"), "127.0.0.1:10249"},
		"kustomize, with monitoring":       {kustomized(t, "ebpf", "../components/monitoring"), "0.0.0.0:10249"},
	} {
		if got := strings.Count(string(c.rendered), "metricsBindAddress: "+c.want+"\n"); got != 1 {
			t.Errorf("%s: metricsBindAddress is %s in %d places, want 1", name, c.want, got)
		}
	}
}

// TestAllRights: with them just the flag tells one backend from another.
func TestAllRights(t *testing.T) {
	want := strings.ReplaceAll(string(chart(t, "auto")), "--backend=auto", "--backend=iptables")
	if got := string(chart(t, "iptables", "allRights=true")); got != want {
		t.Errorf("the chart makes\n%s\nwant\n%s", got, want)
	}
}

// TestValues: a value that makes no sense is refused, with its name.
func TestValues(t *testing.T) {
	for setting, says := range map[string]string{
		"backend=userspace":          "backend",
		"image.digest=abc":           "digest",
		"apiServers={node-1}":        "apiServers",
		"backends=iptables":          "backends",
		"monitoring.podmonitor=true": "podmonitor",
	} {
		cmd := exec.Command(program(t, "helm"), "template", here(t, "helm"), "--kube-version=1.37", "--set="+setting)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), says) {
			t.Errorf("%s: %v\n%s", setting, err, out)
		}
	}
}

// TestLint is helm's own opinion of the chart.
func TestLint(t *testing.T) {
	tool(t, "helm", "lint", "--strict", "--kube-version=1.37", here(t, "helm"))
}

// TestMetricsAreThere: rules and dashboard ask for metrics that docs lists, and
// each alert says what to do.
func TestMetricsAreThere(t *testing.T) {
	docs, err := os.ReadFile("../docs/kube-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("kustomize", "components", "monitoring")
	for _, file := range []string{"prometheusrule.yaml", "switchyard.json"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`\b(?:kubeproxy|switchyard)_[a-z_]+`).FindAllString(string(data), -1)
		if len(names) < 5 {
			t.Errorf("%s: just %d metrics", file, len(names))
		}
		for _, name := range names {
			_, name, _ = strings.Cut(name, "_")
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
			if !strings.Contains(string(docs), "`"+name+"`") {
				t.Errorf("%s: docs/kube-proxy.md has no metric %s", file, name)
			}
		}
	}
	var rules struct {
		Spec struct {
			Groups []struct {
				Rules []struct {
					Alert, Expr string
					Annotations map[string]string
				}
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "prometheusrule.yaml"))
	if err == nil {
		err = yaml.Unmarshal(data, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Spec.Groups[0].Rules {
		if r.Expr == "" || r.Annotations["summary"] == "" || r.Annotations["action"] == "" {
			t.Errorf("alert %s: %+v", r.Alert, r)
		}
	}
}

package manifests

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

func TestDirectory(t *testing.T) {
	s := New("testdata/good", "Node-A", slog.New(slog.DiscardHandler))
	c, _, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Services.Put) != 1 || len(c.Slices.Put) != 1 || len(c.Nodes.Put) != 1 || len(c.ServiceCIDRs.Put) != 1 {
		t.Fatalf("got %d Services, %d EndpointSlices, %d Nodes, %d ServiceCIDRs; wanted one of each",
			len(c.Services.Put), len(c.Slices.Put), len(c.Nodes.Put), len(c.ServiceCIDRs.Put))
	}
	web := &facts.Service{
		Name:       facts.Name{Namespace: "shop", Name: "web"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Ports:      []facts.ServicePort{{Protocol: dataplane.TCP, Port: 80}},
		Affinity:   3 * time.Hour,
	}
	if !c.Services.Put[0].Equal(web) {
		t.Errorf("Service:\n got %+v\nwant %+v", c.Services.Put[0], web)
	}
	if e := c.Slices.Put[0].Endpoints; len(e) != 2 || !e[0].Local || e[1].Local {
		t.Errorf("endpoints: got %+v, wanted two, the first of them local", e)
	}
	node := &facts.Node{
		Name: facts.Name{Name: "node-a"}, Zone: "z1", Eligible: true, Final: true,
		IPs:      []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
	}
	if !c.Nodes.Put[0].Equal(node) {
		t.Errorf("Node:\n got %+v\nwant %+v", c.Nodes.Put[0], node)
	}
}

// service is a manifest of a Service named shop/web with some lines of spec.
func service(spec ...string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  " + strings.Join(spec, "\n  ") + "\n"
}

// slice is a manifest of an EndpointSlice with some lines at the top level.
func slice(lines ...string) string {
	return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n" +
		strings.Join(lines, "\n") + "\n"
}

func TestFaultsNameObjectFieldValueAndWhatIsAllowed(t *testing.T) {
	ip := "clusterIP: 10.96.0.10"
	for _, tc := range []struct {
		name, doc string
		want      []string // parts of the message
	}{
		{"unknown field", service(ip, "ports: [{port: 80, prot: UDP}]"), []string{"Service shop/web", `unknown field "spec.ports[0].prot"`}},
		{"wrong case of a field", service(ip, "Ports: [{port: 80}]"), []string{`unknown field "spec.Ports"`}},
		{"repeated field", service(ip, ip, "ports: [{port: 80}]"), []string{`key "clusterIP" already set`}},
		{"wrong type", service(ip, "ports: [{port: 80}, {port: http}]"), []string{"Service shop/web", "spec.ports[1].port", `"http"`, "a whole number"}},
		{"wrong type in a map", "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {x/y: 1}}\n", []string{"Node a", "metadata.labels[x/y]", "a string"}},
		{"port out of range", service(ip, "ports: [{port: 70000}]"), []string{"spec.ports[0].port", "70000", "1 to 65535"}},
		{"port zero", service(ip, "ports: [{port: 0}]"), []string{"spec.ports[0].port", "1 to 65535"}},
		{"protocol", service(ip, "ports: [{port: 80, protocol: ICMP}]"), []string{"spec.ports[0].protocol", `"ICMP"`, `"TCP", "UDP"`}},
		{"no ports", service(ip), []string{"spec.ports", "at least one"}},
		{"unnamed ports", service(ip, "ports: [{port: 80}, {port: 81}]"), []string{"spec.ports[1].name", "Required"}},
		{"port name twice", service(ip, "ports: [{name: a, port: 80}, {name: a, port: 81}]"), []string{"spec.ports[1].name", `Duplicate value: "a"`}},
		{"port twice", service(ip, "ports: [{name: a, port: 80}, {name: b, port: 80}]"), []string{"spec.ports[1]", "TCP 80"}},
		{"nodePort twice", service(ip, "type: NodePort", "ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}]"), []string{"spec.ports[1].nodePort", "Duplicate", "30000"}},
		{"nodePort missing", service(ip, "type: NodePort", "ports: [{port: 80}]"), []string{"spec.ports[0].nodePort", "Required"}},
		{"nodePort of a ClusterIP", service(ip, "ports: [{port: 80, nodePort: 30000}]"), []string{"spec.ports[0].nodePort", "ClusterIP"}},
		{"clusterIP missing", service("ports: [{port: 80}]"), []string{"spec.clusterIP", "allocate"}},
		{"clusterIP", service("clusterIP: 10.96.0.256", "ports: [{port: 80}]"), []string{"spec.clusterIPs[0]", "10.96.0.256", "IP address"}},
		{"two of a family", service("clusterIPs: [10.0.0.1, 10.0.0.2]", "ports: [{port: 80}]"), []string{"spec.clusterIPs[1]", "each family"}},
		{"clusterIP and clusterIPs", service("clusterIP: 10.0.0.2", "clusterIPs: [10.0.0.1]", "ports: [{port: 80}]"), []string{"spec.clusterIP", "10.0.0.1"}},
		{"ipFamilies", service(ip, "ipFamilies: [IPv6]", "ports: [{port: 80}]"), []string{"spec.ipFamilies[0]", "IPv6"}},
		{"externalIP", service(ip, "externalIPs: [127.0.0.1]", "ports: [{port: 80}]"), []string{"spec.externalIPs[0]", "127.0.0.1", "loopback"}},
		{"source range", service(ip, "loadBalancerSourceRanges: [10.0.0.1/33]", "ports: [{port: 80}]"), []string{"spec.loadBalancerSourceRanges[0]", "CIDR"}},
		{"affinity timeout", service(ip, "sessionAffinity: ClientIP", "sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}", "ports: [{port: 80}]"), []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds", "86401", "86400"}},
		{"policy", service(ip, "internalTrafficPolicy: Near", "ports: [{port: 80}]"), []string{"spec.internalTrafficPolicy", `"Near"`, `"Cluster", "Local"`}},
		{"type", service(ip, "type: Router", "ports: [{port: 80}]"), []string{"spec.type", `"Router"`, `"LoadBalancer"`}},
		{"ipMode", service(ip, "ports: [{port: 80}]") + "status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: Any}]}}\n", []string{"status.loadBalancer.ingress[0].ipMode", "Any"}},
		{"no name", "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {clusterIP: None}\n", []string{"document 1 (Service)", "metadata.name"}},
		{"bad name", "apiVersion: v1\nkind: Node\nmetadata: {name: A_b}\n", []string{"Node A_b", "metadata.name", "lower case"}},
		{"addressType", slice("addressType: IPv5", "endpoints: []"), []string{"EndpointSlice shop/web-1", "addressType", "IPv5"}},
		{"address", slice("addressType: IPv4", "endpoints: [{addresses: [10.0.0.1]}, {addresses: [x]}]"), []string{"endpoints[1].addresses[0]", `"x"`}},
		{"address of the other family", slice("addressType: IPv6", "endpoints: [{addresses: [10.0.0.1]}]"), []string{"endpoints[0].addresses[0]", "10.0.0.1", "IPv6"}},
		{"no address", slice("addressType: IPv4", "endpoints: [{addresses: []}]"), []string{"endpoints[0].addresses", "Required"}},
		{"endpoint port", slice("addressType: IPv4", "ports: [{port: 0}]", "endpoints: []"), []string{"ports[0].port", "1 to 65535"}},
		{"endpoint port missing", slice("addressType: IPv4", "ports: [{name: a}]", "endpoints: []"), []string{"ports[0].port", "Required"}},
		{"no Service", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: []\n", []string{"EndpointSlice default/a", "metadata.labels[kubernetes.io/service-name]"}},
		{"podCIDR", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDRs: [10.0.0.0]}\n", []string{"spec.podCIDRs[0]", "CIDR"}},
		{"node address", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus: {addresses: [{type: InternalIP, address: a}]}\n", []string{"status.addresses[0].address"}},
		{"ServiceCIDR", "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: a}\nspec: {}\n", []string{"ServiceCIDR a", "spec.cidrs"}},
		{"other kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n", []string{"Deployment web", "apps/v1", "allowed are"}},
		{"no kind", "spec: {}\n", []string{"document 1", "allowed are"}},
		{"not YAML", "{", []string{"document 1"}},
		{"second document", service(ip, "ports: [{port: 80}]") + "---\n[]\n", []string{"document 2"}},
		{"item of a List", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node}\n", []string{"document 1, items[0] (Node)", "metadata.name"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := decode("f.yaml", []byte(tc.doc), "a")
			if err == nil {
				t.Fatal("no fault found")
			}
			for _, part := range append(tc.want, "f.yaml: ") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range []string{"testdata/good/shop.yaml", "testdata/good/list.json"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(service("clusterIPs: [10.96.0.1, fd00::1]", "type: LoadBalancer", "externalTrafficPolicy: Local", "ports: [{port: 80, nodePort: 30000}]")))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := decode("f.yaml", data, "a")
		for _, o := range objects {
			if o.name.Name == "" {
				t.Errorf("an object without a name passed: %+v", o)
			}
			if s := o.service; s != nil && (len(s.ClusterIPs) == 0 || len(s.Ports) == 0) {
				t.Errorf("a Service with nothing to forward passed: %+v", s)
			}
		}
		if err != nil && !strings.Contains(err.Error(), "f.yaml: ") {
			t.Errorf("a fault without its file: %v", err)
		}
	})
}

// run starts the source on a directory; the channel has what it applied.
func run(t *testing.T, dir string) (*Source, <-chan facts.Change) {
	t.Helper()
	s := New(dir, "a", slog.New(slog.DiscardHandler))
	applied := make(chan facts.Change, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx, func(c facts.Change) { applied <- c })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s, applied
}

func awaitServices(t *testing.T, applied <-chan facts.Change, want int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case c := <-applied:
			if len(c.Services.Put) == want {
				return
			}
		case <-deadline:
			t.Fatalf("a change with %d Services never came", want)
		}
	}
}

func awaitErr(t *testing.T, s *Source, want bool) {
	t.Helper()
	for range 2000 {
		if (s.Err() != nil) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("Err: %v", s.Err())
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFollowsTheDirectory(t *testing.T) {
	good := service("clusterIP: 10.96.0.10", "ports: [{port: 80}]")
	other := strings.ReplaceAll(good, "web", "other")

	t.Run("files written, put in place and removed", func(t *testing.T) {
		dir := t.TempDir()
		s, applied := run(t, dir)
		awaitServices(t, applied, 0)
		write(t, filepath.Join(dir, "a.yaml"), good)
		awaitServices(t, applied, 1)
		write(t, filepath.Join(dir, ".b.tmp"), other)
		if err := os.Rename(filepath.Join(dir, ".b.tmp"), filepath.Join(dir, "b.yml")); err != nil {
			t.Fatal(err)
		}
		awaitServices(t, applied, 2)
		if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		awaitServices(t, applied, 1)
		awaitErr(t, s, false)
	})
	t.Run("a fault leaves the last good directory in force", func(t *testing.T) {
		dir := t.TempDir()
		s, applied := run(t, dir)
		write(t, filepath.Join(dir, "a.yaml"), good)
		awaitServices(t, applied, 1)
		write(t, filepath.Join(dir, "b.yaml"), other+"  x: y\n")
		awaitErr(t, s, true)
		write(t, filepath.Join(dir, "c.yaml"), strings.ReplaceAll(good, "web", "third"))
		time.Sleep(3 * settle)
		if len(applied) != 0 {
			t.Error("a directory with a fault was applied")
		}
		write(t, filepath.Join(dir, "b.yaml"), other)
		awaitServices(t, applied, 3)
		awaitErr(t, s, false)
	})
	t.Run("an object in two files is a fault", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.yaml"), good)
		write(t, filepath.Join(dir, "b.yaml"), good)
		s, _ := run(t, dir)
		awaitErr(t, s, true)
		if err := s.Err().Error(); !strings.Contains(err, "b.yaml: Service shop/web: is in "+filepath.Join(dir, "a.yaml")) {
			t.Error(err)
		}
	})
	t.Run("a ConfigMap's swap of ..data", func(t *testing.T) {
		dir := t.TempDir()
		version := func(name, data string) {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, name, "a.yaml"), data)
			if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		version("..1", good)
		if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		_, applied := run(t, dir)
		awaitServices(t, applied, 1)
		version("..2", good+"---\n"+other)
		awaitServices(t, applied, 2)
	})
	t.Run("a directory that comes later, goes and comes again", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "later")
		s, applied := run(t, dir)
		awaitErr(t, s, true)
		for range 2 {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "a.yaml"), good)
			awaitServices(t, applied, 1)
			awaitErr(t, s, false)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestTheHolderStays: a new file whose Service sorts earlier is younger than the
// Services that were there before.
func TestTheHolderStays(t *testing.T) {
	dir := t.TempDir()
	web := service("clusterIP: 10.96.0.10", "ports: [{port: 80}]")
	earlier := strings.ReplaceAll(web, "web", "a")
	write(t, filepath.Join(dir, "web.yaml"), web)
	_, applied := run(t, dir)
	created := func(want int) map[string]int64 {
		t.Helper()
		for {
			select {
			case c := <-applied:
				if len(c.Services.Put) != want {
					continue
				}
				got := map[string]int64{}
				for _, s := range c.Services.Put {
					got[s.Name.Name] = s.Created
				}
				return got
			case <-time.After(time.Minute):
				t.Fatalf("a change with %d Services never came", want)
			}
		}
	}
	first := created(1)
	write(t, filepath.Join(dir, "a.yaml"), earlier)
	if got := created(2); got["web"] != first["web"] || got["a"] <= got["web"] {
		t.Errorf("at first %v, then %v", first, got)
	}
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	created(1)
	write(t, filepath.Join(dir, "web.yaml"), web) // as a new one
	if got := created(2); got["web"] <= got["a"] {
		t.Errorf("made again: %v", got)
	}
}

// TestANewFileIsYoung: a Service of a new file is younger than one that says when
// it was created.
func TestANewFileIsYoung(t *testing.T) {
	s := New(t.TempDir(), "node-a", slog.New(slog.DiscardHandler))
	dated, undated := &facts.Service{Name: facts.Name{Name: "dated"}, Created: time.Now().Add(-time.Minute).Unix()}, &facts.Service{Name: facts.Name{Name: "undated"}}
	services := []*facts.Service{dated, undated}
	s.age(services)
	if services[0].Created >= services[1].Created {
		t.Errorf("created at %d, and in a new file %d", services[0].Created, services[1].Created)
	}
}

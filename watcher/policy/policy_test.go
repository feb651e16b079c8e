package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Endpoints of most tests: 1.x are on this node, 2.x are not.
const (
	l1 = "10.244.1.1"
	l2 = "10.244.1.2"
	r1 = "10.244.2.1"
	r2 = "10.244.2.2"
)

// at is what a pool of such addresses is called.
func at(addrs ...string) string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a + ":8080"
	}
	return strings.Join(out, " ")
}

// TestSets is who is in the Cluster and in the Local set: KUBE-PROXY §1.2 to §1.4.
func TestSets(t *testing.T) {
	for _, tc := range []struct {
		name           string
		endpoints      []string
		cluster, local string
	}{
		{"§1.2 no conditions means ready", []string{l1 + " local", r1}, at(l1, r1), at(l1)},
		{"§1.2 an endpoint without a node is never local", []string{l1 + " nowhere"}, at(l1), "drop"},
		{"§1.3 ready ones only", []string{l1 + " local ready", l2 + " local unready", r1 + " unready", r2 + " ready"}, at(l1, r2), at(l1)},
		{"§1.3 terminating ones do not serve beside ready ones", []string{l1 + " local terminating", r1 + " ready"}, at(r1), at(l1)},
		{"§1.3 all terminating: those that still serve", []string{l1 + " local terminating", l2 + " local stopped", r1 + " terminating"}, at(l1, r1), at(l1)},
		{"§1.3 terminating and ready locally: ready", []string{l1 + " local terminating", l2 + " local ready"}, at(l2), at(l2)},
		{"§1.3 serving without ready or terminating is nothing", []string{l1 + " local serving"}, "reject", "reject"},
		{"§1.3 unready or stopped never serve", []string{l1 + " local unready", r1 + " stopped"}, "reject", "reject"},
		{"§1.3 publishNotReadyAddresses comes as ready", []string{l1 + " local published", r1 + " ready"}, at(l1, r1), at(l1)},
		{"§1.4 every one hints at a zone: those of mine", []string{l1 + " local zone:z2", r1 + " zone:z1", r2 + " zone:z2 zone:z1"}, at(r1, r2), at(l1)},
		{"§1.4 one without a hint: all", []string{l1 + " local zone:z1", r1}, at(l1, r1), at(l1)},
		{"§1.4 an unready one without a hint does not count", []string{l1 + " local zone:z1", r1 + " zone:z2", r2 + " unready"}, at(l1), at(l1)},
		{"§1.4 no hint at my zone: all", []string{l1 + " local zone:z2", r1 + " zone:z3"}, at(l1, r1), at(l1)},
		{"§1.4 every one hints at a node: those of mine", []string{l1 + " local node:here", r1 + " node:elsewhere"}, at(l1), at(l1)},
		{"§1.4 the node comes before the zone", []string{l1 + " local node:here zone:z1", r1 + " node:elsewhere zone:z1"}, at(l1), at(l1)},
		{"§1.4 no hint at my node: by zone", []string{r1 + " node:elsewhere zone:z1", r2 + " node:third zone:z2"}, at(r1), "drop"},
		{"§1.4 one without a hint at a node: by zone", []string{l1 + " local node:here zone:z2", r1 + " zone:z1"}, at(r1), at(l1)},
		{"§1.4 hints of terminating ones do not count when they serve", []string{r1 + " terminating zone:z2", r2 + " terminating zone:z1"}, at(r1, r2), "drop"},
		{"no endpoints", nil, "reject", "reject"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ports := build(t, service(all(loadBalancer, externalLocal)), env(), slice("a", tc.endpoints...))
			for _, f := range one(t, ports, dataplane.IPv4).Frontends {
				pool, inside := tc.cluster, tc.cluster
				if f.Kind != dataplane.ClusterIP {
					pool = tc.local
				}
				if poolOf(f.Pool) != pool || insideOf(f) != inside {
					t.Errorf("%s: %s, inside %s; wanted %s, inside %s", f.Kind, poolOf(f.Pool), insideOf(f), pool, inside)
				}
			}
			internal := one(t, build(t, service(internalLocal), env(), slice("a", tc.endpoints...)), dataplane.IPv4)
			if got := poolOf(internal.Frontends[0].Pool); got != tc.local {
				t.Errorf("ClusterIP with internalTrafficPolicy Local: %s; wanted %s", got, tc.local)
			}
		})
	}
	t.Run("§1.4 a node without a zone has no zone's endpoints", func(t *testing.T) {
		e := env()
		e.Zone = ""
		p := one(t, build(t, service(nil), e, slice("a", l1+" zone:z1", r1+" zone:z2")), dataplane.IPv4)
		if got := poolOf(p.Frontends[0].Pool); got != at(l1, r1) {
			t.Error(got)
		}
	})
}

// TestReasons is what keeps each endpoint out: of the Cluster set, of the Local set.
func TestReasons(t *testing.T) {
	const in = "in use"
	for _, tc := range []struct {
		name      string
		endpoints []string
		want      []string // "cluster / local", sorted by address
	}{
		{"not ready", []string{l1 + " local ready", l2 + " local unready", r1 + " unready"},
			[]string{in + " / " + in, "not ready / not ready", "not ready / not ready"}},
		{"terminating beside ready ones", []string{l1 + " local ready", l2 + " local terminating", r1 + " terminating", r2 + " stopped"},
			[]string{in + " / " + in, "terminating, and others are ready / terminating, and others are ready",
				"terminating, and others are ready / on another node, and the traffic policy is Local",
				"terminating and not serving / terminating and not serving"}},
		{"ready ones elsewhere alone", []string{l1 + " local terminating", r1 + " ready"},
			[]string{"terminating, and others are ready / " + in, in + " / on another node, and the traffic policy is Local"}},
		{"hints for zones", []string{l1 + " local zone:z2", r1 + " zone:z1"},
			[]string{"topology hints give it to other zones / " + in, in + " / on another node, and the traffic policy is Local"}},
		{"hints for nodes", []string{l1 + " local node:here", r1 + " node:elsewhere"},
			[]string{in + " / " + in, "topology hints give it to other nodes / on another node, and the traffic policy is Local"}},
		{"published though unready", []string{l1 + " local published"}, []string{in + " / " + in}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc, _ := facts.FromService(service(nil))
			set, _ := facts.FromSlice(slice("a", tc.endpoints...), here)
			var got []string
			for _, e := range policy.Explain(svc, svc.Ports[0], dataplane.IPv4, []*facts.Slice{set}, env()).Endpoints {
				got = append(got, fmt.Sprintf("%s / %s", e.Cluster, e.Local))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestSlices is how slices come together: KUBE-PROXY §1.2.
func TestSlices(t *testing.T) {
	port := func(s *discoveryv1.EndpointSlice, change func(*discoveryv1.EndpointPort)) *discoveryv1.EndpointSlice {
		change(&s.Ports[0])
		return s
	}
	for _, tc := range []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"several slices", []*discoveryv1.EndpointSlice{slice("a", r1), slice("b", l1)}, at(l1, r1)},
		{"each slice has its own number for a named port", []*discoveryv1.EndpointSlice{slice("a", l1),
			port(slice("b", r1), func(p *discoveryv1.EndpointPort) { p.Port = new(int32(9090)) })}, l1 + ":8080 " + r1 + ":9090"},
		{"a port of another name", []*discoveryv1.EndpointSlice{port(slice("a", l1), func(p *discoveryv1.EndpointPort) { p.Name = new("x") })}, "reject"},
		{"a port of another protocol", []*discoveryv1.EndpointSlice{port(slice("a", l1), func(p *discoveryv1.EndpointPort) { p.Protocol = new(corev1.ProtocolUDP) })}, "reject"},
		{"a port without a name", []*discoveryv1.EndpointSlice{port(slice("a", l1), func(p *discoveryv1.EndpointPort) { p.Name = nil })}, "reject"},
		{"a port without a number", []*discoveryv1.EndpointSlice{port(slice("a", l1), func(p *discoveryv1.EndpointPort) { p.Port = nil })}, "reject"},
		{"a port without a protocol is TCP", []*discoveryv1.EndpointSlice{port(slice("a", l1), func(p *discoveryv1.EndpointPort) { p.Protocol = nil })}, at(l1)},
		{"the other family", []*discoveryv1.EndpointSlice{slice("a", "fd00::1")}, "reject"},
		{"a slice of no Service", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice { s := slice("a", l1); s.Labels = nil; return s }()}, "reject"},
		{"a headless Service's slice", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("a", l1)
			s.Labels[corev1.IsHeadlessService] = ""
			return s
		}()}, "reject"},
		{"names instead of addresses", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice { s := slice("a", l1); s.AddressType = "FQDN"; return s }()}, "reject"},
		{"only the first address counts", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("a", l1)
			s.Endpoints[0].Addresses = append(s.Endpoints[0].Addresses, l2)
			return s
		}()}, at(l1)},
		{"twice the same: once", []*discoveryv1.EndpointSlice{slice("a", l1), slice("b", l1)}, at(l1)},
		{"twice the same: a terminating one does not replace it", []*discoveryv1.EndpointSlice{slice("a", l1), slice("b", l1+" terminating")}, at(l1)},
		{"twice the same: nor does it stay", []*discoveryv1.EndpointSlice{slice("a", l1+" terminating"), slice("b", l1+" unready")}, "reject"},
		{"twice the same: ready wins", []*discoveryv1.EndpointSlice{slice("a", l1), slice("b", l1+" unready")}, at(l1)},
		{"twice the same: also over one that serves without being ready", []*discoveryv1.EndpointSlice{slice("a", l1), slice("b", l1+" serving")}, at(l1)},
		{"leading zeros are decimal (§1.17)", []*discoveryv1.EndpointSlice{slice("a", "010.244.001.001")}, at(l1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := one(t, build(t, service(nil), env(), tc.slices...), dataplane.IPv4)
			if got := poolOf(p.Frontends[0].Pool); got != tc.want {
				t.Errorf("got %s, wanted %s", got, tc.want)
			}
		})
	}
}

func TestOfSlicesThatDifferTheLastByNameCounts(t *testing.T) { // KUBE-PROXY §1.2
	p := one(t, build(t, service(nil), env(), slice("a", l1+" local"), slice("b", l1)), dataplane.IPv4)
	if e := p.Frontends[0].Pool.Endpoints; len(e) != 1 || e[0].Local {
		t.Errorf("got %+v", e)
	}
}

func TestInsideIsLeftOutWhereItIsThePool(t *testing.T) {
	p := one(t, build(t, service(all(loadBalancer, externalLocal)), env(), slice("a", l1+" local", l2+" local")), dataplane.IPv4)
	for _, f := range p.Frontends {
		if f.Inside != nil {
			t.Errorf("%s: %s", f.Kind, poolOf(f.Inside))
		}
	}
}

// TestPolicies is the matrix of who gets which set, and who is masqueraded:
// KUBE-PROXY §1.5 and §1.13. One endpoint is here, one elsewhere.
func TestPolicies(t *testing.T) {
	cluster, local := at(l1, r1), at(l1)
	noDetector := func(e *policy.Env) { e.LocalPods = dataplane.LocalPods{} }
	onlyIPv6 := func(e *policy.Env) {
		e.LocalPods = dataplane.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}
	}
	everyone := func(e *policy.Env) { e.MasqueradeAll = true }
	type row struct {
		pool, inside string
		snat         dataplane.SNAT
	}
	for _, tc := range []struct {
		name               string
		service            func(*corev1.Service)
		env                func(*policy.Env)
		internal, external row
	}{
		{"both Cluster", nil, nil,
			row{cluster, cluster, dataplane.SNATNonPods}, row{cluster, cluster, dataplane.SNATAll}},
		{"external Local", externalLocal, nil,
			row{cluster, cluster, dataplane.SNATNonPods}, row{local, cluster, dataplane.SNATNode}},
		{"internal Local", internalLocal, nil,
			row{local, local, dataplane.SNATNonPods}, row{cluster, cluster, dataplane.SNATAll}},
		{"both Local", all(internalLocal, externalLocal), nil,
			row{local, local, dataplane.SNATNonPods}, row{local, cluster, dataplane.SNATNode}},
		{"no detector: nobody to a ClusterIP is masqueraded", externalLocal, noDetector,
			row{cluster, cluster, dataplane.SNATNone}, row{local, cluster, dataplane.SNATNode}},
		{"no detector of this family", externalLocal, onlyIPv6,
			row{cluster, cluster, dataplane.SNATNone}, row{local, cluster, dataplane.SNATNode}},
		{"masqueradeAll: pods to a ClusterIP too", externalLocal, everyone,
			row{cluster, cluster, dataplane.SNATAll}, row{local, cluster, dataplane.SNATNode}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, change := env(), tc.service
			if tc.env != nil {
				tc.env(&e)
			}
			if change == nil {
				change = func(*corev1.Service) {}
			}
			p := one(t, build(t, service(all(loadBalancer, change)), e, slice("a", l1+" local", r1)), dataplane.IPv4)
			if len(p.Frontends) != 4 {
				t.Fatalf("%d frontends", len(p.Frontends))
			}
			for _, f := range p.Frontends {
				want := tc.external
				if f.Kind == dataplane.ClusterIP {
					want = tc.internal
				}
				if got := (row{poolOf(f.Pool), insideOf(f), f.SNAT}); got != want {
					t.Errorf("%s: got %v, wanted %v", f.Kind, got, want)
				}
			}
		})
	}
}

// TestWithoutEndpoints is drop or reject: KUBE-PROXY §1.6.
func TestWithoutEndpoints(t *testing.T) {
	for _, tc := range []struct {
		name                       string
		service                    func(*corev1.Service)
		endpoints                  []string
		internal, external, inside string
	}{
		{"none anywhere, both Cluster", loadBalancer, nil, "reject", "reject", "reject"},
		{"none anywhere, both Local", all(loadBalancer, internalLocal, externalLocal), []string{l1 + " local unready"}, "reject", "reject", "reject"},
		{"elsewhere, internal Local", all(loadBalancer, internalLocal), []string{r1}, "drop", at(r1), at(r1)},
		{"elsewhere, external Local", all(loadBalancer, externalLocal), []string{r1}, at(r1), "drop", at(r1)},
		{"elsewhere and terminating, external Local", all(loadBalancer, externalLocal), []string{r1 + " terminating"}, at(r1), "drop", at(r1)},
		{"elsewhere, and by topology for others", all(loadBalancer, internalLocal), []string{r1 + " zone:z2"}, "drop", at(r1), at(r1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := one(t, build(t, service(tc.service), env(), slice("a", tc.endpoints...)), dataplane.IPv4)
			for _, f := range p.Frontends {
				pool, inside := tc.external, tc.inside
				if f.Kind == dataplane.ClusterIP {
					pool, inside = tc.internal, tc.internal
				}
				if poolOf(f.Pool) != pool || insideOf(f) != inside {
					t.Errorf("%s: %s, inside %s; wanted %s, inside %s", f.Kind, poolOf(f.Pool), insideOf(f), pool, inside)
				}
			}
		})
	}
}

// TestFrontends is where a Service answers: KUBE-PROXY §1.1, §1.8, §1.9, §1.10, §1.17.
func TestFrontends(t *testing.T) {
	ingress := func(in ...corev1.LoadBalancerIngress) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = in }
	}
	dual := func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"} }
	const clusterIP = "ClusterIP TCP 10.96.0.1:80"
	for _, tc := range []struct {
		name    string
		service func(*corev1.Service)
		env     func(*policy.Env)
		want    []string
	}{
		{"§1.1 a ClusterIP", nil, nil, []string{clusterIP}},
		{"§1.1 headless", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, nil, nil},
		{"§1.1 no ClusterIP yet", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }, nil, nil},
		{"§1.1 ClusterIP without clusterIPs", func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, nil, []string{clusterIP}},
		{"§1.1 ExternalName, even with a ClusterIP", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil, nil},
		{"§1.1 another proxy's, whatever the label's value", func(s *corev1.Service) { s.Labels = map[string]string{facts.ProxyNameLabel: ""} }, nil, nil},
		{"§1.1 every kind", loadBalancer, nil, []string{clusterIP, "ExternalIP TCP 198.51.100.1:80", "LoadBalancer TCP 203.0.113.1:80", "NodePort TCP 0.0.0.0:30080"}},
		{"§1.1 the type hardly matters", all(loadBalancer, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }), nil,
			[]string{clusterIP, "ExternalIP TCP 198.51.100.1:80", "LoadBalancer TCP 203.0.113.1:80", "NodePort TCP 0.0.0.0:30080"}},
		{"§1.1 allocateLoadBalancerNodePorts false", all(loadBalancer, func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 0 }), nil,
			[]string{clusterIP, "ExternalIP TCP 198.51.100.1:80", "LoadBalancer TCP 203.0.113.1:80"}},
		{"§1.1 ipMode VIP", ingress(corev1.LoadBalancerIngress{IP: "203.0.113.1", IPMode: new(corev1.LoadBalancerIPModeVIP)}), nil, []string{clusterIP, "LoadBalancer TCP 203.0.113.1:80"}},
		{"§1.1 ipMode Proxy", ingress(corev1.LoadBalancerIngress{IP: "203.0.113.1", IPMode: new(corev1.LoadBalancerIPModeProxy)}), nil, []string{clusterIP}},
		{"§1.1 a load balancer with a name only", ingress(corev1.LoadBalancerIngress{Hostname: "lb.example"}), nil, []string{clusterIP}},
		{"§1.8 externalIPs switched off", loadBalancer, func(e *policy.Env) { e.ExternalIPs = false },
			[]string{clusterIP, "LoadBalancer TCP 203.0.113.1:80", "NodePort TCP 0.0.0.0:30080"}},
		{"§1.17 dual stack", all(dual, loadBalancer), nil, []string{
			clusterIP, "ExternalIP TCP 198.51.100.1:80", "LoadBalancer TCP 203.0.113.1:80", "NodePort TCP 0.0.0.0:30080",
			"ClusterIP TCP [fd00:96::1]:80", "NodePort TCP [::]:30080"}},
		{"§1.17 dual stack on a node of one family", dual, func(e *policy.Env) { e.Families = []dataplane.Family{dataplane.IPv6} }, []string{"ClusterIP TCP [fd00:96::1]:80"}},
		{"§1.1 external addresses of a family without a ClusterIP", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"2001:db8::5"} }, nil, []string{clusterIP}},
		{"§1.1 TCP and UDP on one number are two ports", func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: "UDP"}, {Name: "dns-tcp", Port: 53}, {Name: "sctp", Port: 53, Protocol: "SCTP"}}
		}, nil, []string{"ClusterIP UDP 10.96.0.1:53", "ClusterIP TCP 10.96.0.1:53", "ClusterIP SCTP 10.96.0.1:53"}},
		{"§1.17 leading zeros are decimal", func(s *corev1.Service) { s.Spec.ClusterIPs[0] = "010.096.000.001" }, nil, []string{clusterIP}},
		{"an address of two kinds: the one with source ranges", func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"203.0.113.1", "10.96.0.1"}
			ingress(corev1.LoadBalancerIngress{IP: "203.0.113.1"})(s)
		}, nil, []string{clusterIP, "LoadBalancer TCP 203.0.113.1:80"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := env()
			if tc.env != nil {
				tc.env(&e)
			}
			got := frontendsOf(build(t, service(tc.service), e))
			if !slices.Equal(got, tc.want) {
				t.Errorf("\n got %q\nwant %q", got, tc.want)
			}
		})
	}
}

// TestExternalPolicyNeedsAnOutside: KUBE-PROXY §1.1, where externalTrafficPolicy counts.
func TestExternalPolicyNeedsAnOutside(t *testing.T) {
	for _, tc := range []struct {
		name    string
		service func(*corev1.Service)
		local   bool
	}{
		{"NodePort", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, true},
		{"LoadBalancer", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }, true},
		{"ClusterIP with external IPs", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.1"} }, true},
		{"ClusterIP", func(*corev1.Service) {}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, _ := facts.FromService(service(all(tc.service, externalLocal)))
			if f.ExternalLocal != tc.local {
				t.Errorf("counts: %v", f.ExternalLocal)
			}
		})
	}
}

// TestSourceRanges: KUBE-PROXY §1.9. The node is at 192.0.2.1.
func TestSourceRanges(t *testing.T) {
	for _, tc := range []struct {
		name   string
		ranges []string
		v4, v6 string
	}{
		{"none", nil, "[]", "[]"},
		{"one, with spaces", []string{" 198.51.100.0/24 "}, "[198.51.100.0/24]", "[]"},
		{"only of the other family: no filter", []string{"2001:db8:5::/64"}, "[]", "[2001:db8:5::/64]"},
		{"of both", []string{"2001:db8:5::/64", "198.51.100.0/24"}, "[198.51.100.0/24]", "[2001:db8:5::/64]"},
		{"/0 among others: no filter", []string{"198.51.100.0/24", "0.0.0.0/0"}, "[]", "[]"},
		{"/0 of the other family", []string{"198.51.100.0/24", "::/0"}, "[198.51.100.0/24]", "[]"},
		{"host bits are ignored, twice is once, sorted", []string{"198.51.100.77/24", "10.0.0.0/8", "198.51.100.0/24"}, "[10.0.0.0/8 198.51.100.0/24]", "[]"},
		{"one in another is left out", []string{"10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24"}, "[10.0.0.0/8]", "[]"},
		{"halves are the whole", []string{"10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/10"}, "[10.0.0.0/8]", "[]"},
		{"neighbours that are no halves stay two", []string{"10.1.0.0/16", "10.2.0.0/16"}, "[10.1.0.0/16 10.2.0.0/16]", "[]"},
		{"halves of all: no filter", []string{"0.0.0.0/1", "128.0.0.0/1"}, "[]", "[]"},
		{"of IPv6, too", []string{"2001:db8:5::/48", "2001:db8:5:1::/64", "2001:db8:4::/48"}, "[]", "[2001:db8:4::/47]"},
		{"the node's address is in, and the load balancer's", []string{"192.0.2.0/24", "203.0.113.0/24"}, "[192.0.2.0/24 203.0.113.0/24]", "[]"},
		{"the node's address is in: the load balancer's too", []string{"192.0.2.0/24"}, "[192.0.2.0/24 203.0.113.1/32]", "[]"},
		{"the node's IPv6 address is in", []string{"2001:db8::/64"}, "[]", "[2001:db8::/64 2001:db8:9::1/128]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ports := build(t, service(all(loadBalancer, func(s *corev1.Service) {
				s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
				s.Spec.LoadBalancerSourceRanges = tc.ranges
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: "2001:db8:9::1"})
			})), env())
			for family, want := range map[dataplane.Family]string{dataplane.IPv4: tc.v4, dataplane.IPv6: tc.v6} {
				for _, f := range one(t, ports, family).Frontends {
					expect := "[]" // other kinds are open to anyone
					if f.Kind == dataplane.LoadBalancer {
						expect = want
					}
					var got []string
					for _, s := range f.Sources {
						got = append(got, s.String())
					}
					if g := "[" + strings.Join(got, " ") + "]"; g != expect {
						t.Errorf("%s %s: got %s, wanted %s", family, f.Kind, g, expect)
					}
				}
			}
		})
	}
	t.Run("nonsense closes rather than opens", func(t *testing.T) {
		f, problems := facts.FromService(service(all(loadBalancer, func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"x"} })))
		if len(problems) != 1 || len(f.LoadBalancerIPs) != 0 {
			t.Errorf("%v, load balancer at %v", problems, f.LoadBalancerIPs)
		}
	})
}

// TestScheduler: an annotation chooses how IPVS picks endpoints.
func TestScheduler(t *testing.T) {
	for _, tc := range []struct {
		name, annotation string
		want             string
		problem          string // a part of it
	}{
		{"none", "", "", ""},
		{"one of the kernel's", "wlc", "wlc", ""},
		{"an unknown one leaves the default and is a problem", "random", "", `metadata.annotations[switchyard.io/ipvs-scheduler]: "random" is not one of rr, wrr, lc`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := service(func(s *corev1.Service) {
				if tc.annotation != "" {
					s.Annotations = map[string]string{facts.SchedulerAnnotation: tc.annotation}
				}
			})
			f, problems := facts.FromService(s)
			text := fmt.Sprint(problems)
			if f.Scheduler != tc.want || (len(problems) > 0) != (tc.problem != "") || !strings.Contains(text, tc.problem) {
				t.Errorf("scheduler %q, problems %s; want %q, %q", f.Scheduler, text, tc.want, tc.problem)
			}
			if tc.problem != "" {
				return
			}
			for _, p := range build(t, s, env()) {
				if p.Scheduler != tc.want {
					t.Errorf("%s has scheduler %q, wanted %q", p.ID, p.Scheduler, tc.want)
				}
			}
		})
	}
}

// TestAffinity: KUBE-PROXY §1.11.
func TestAffinity(t *testing.T) {
	timeout := func(s int32) *corev1.SessionAffinityConfig {
		return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &s}}
	}
	for _, tc := range []struct {
		name   string
		kind   corev1.ServiceAffinity
		config *corev1.SessionAffinityConfig
		want   time.Duration
	}{
		{"none", corev1.ServiceAffinityNone, nil, 0},
		{"ClientIP", corev1.ServiceAffinityClientIP, nil, 3 * time.Hour},
		{"ClientIP with a timeout", corev1.ServiceAffinityClientIP, timeout(7), 7 * time.Second},
		{"a timeout without affinity", corev1.ServiceAffinityNone, timeout(7), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := one(t, build(t, service(func(s *corev1.Service) {
				s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = tc.kind, tc.config
			}), env()), dataplane.IPv4)
			if p.Affinity != tc.want {
				t.Errorf("got %s, wanted %s", p.Affinity, tc.want)
			}
		})
	}
}

// TestServing is who may keep its flows: KUBE-PROXY §1.15.
func TestServing(t *testing.T) {
	p := one(t, build(t, service(internalLocal), env(), slice("a",
		l1+" local ready", l2+" local unready", r1+" terminating", r2+" published zone:z9", "10.244.2.3 stopped", "10.244.2.4 serving")), dataplane.IPv4)
	var got []string
	for _, e := range p.Serving {
		got = append(got, e.Addr.Addr().String())
	}
	if want := []string{l1, r1, r2, "10.244.2.4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
}

// TestEnding is whose pod is on its way out, whether it still serves or not.
func TestEnding(t *testing.T) {
	p := one(t, build(t, service(internalLocal), env(), slice("a",
		l1+" local ready", l2+" local unready", r1+" terminating", "10.244.2.3 stopped", "10.244.2.4 serving")), dataplane.IPv4)
	var got []string
	for _, a := range p.Ending {
		got = append(got, a.Addr().String())
	}
	if want := []string{r1, "10.244.2.3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
}

// TestHealthCheck: KUBE-PROXY §1.16.
func TestHealthCheck(t *testing.T) {
	lb := all(loadBalancer, externalLocal, func(s *corev1.Service) {
		s.Spec.HealthCheckNodePort = 32000
		s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "other", Port: 81})
	})
	for _, tc := range []struct {
		name    string
		service func(*corev1.Service)
		want    *dataplane.HealthCheck
	}{
		{"LoadBalancer with externalTrafficPolicy Local", lb, &dataplane.HealthCheck{Port: 32000, LocalEndpoints: 2}},
		{"externalTrafficPolicy Cluster", all(lb, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Cluster" }), nil},
		{"another type", all(lb, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }), nil},
		{"no port", all(lb, func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 0 }), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := slice("b", l2+" local")
			other.Ports[0].Name = new("other")
			portless := slice("d", "10.244.1.9 local")
			portless.Ports = nil
			ports := build(t, service(tc.service), env(),
				slice("a", l1+" local", r1, "10.244.1.3 local terminating", "10.244.1.4 local unready"), slice("aa", l1+" local"), other,
				slice("c", "fd00::1 local"), portless)
			if len(ports) != 4 {
				t.Fatalf("%d ports", len(ports))
			}
			for _, p := range ports {
				if tc.want == nil {
					if p.HealthCheck != nil {
						t.Errorf("%s: %v", p.ID, *p.HealthCheck)
					}
					continue
				}
				want := *tc.want
				if p.ID.Family == dataplane.IPv6 {
					want.LocalEndpoints = 1
				}
				if p.HealthCheck == nil || *p.HealthCheck != want {
					t.Errorf("%s: got %v, wanted %v", p.ID, p.HealthCheck, want)
				}
			}
			if ports[0].HealthCheck != ports[2].HealthCheck || ports[1].HealthCheck != ports[3].HealthCheck {
				t.Error("ports of one family do not share it")
			}
		})
	}
}

// TestSharing: what is equal is the same pointer, within a ServicePort and from
// one building to the next.
func TestSharing(t *testing.T) {
	spec := all(loadBalancer, externalLocal, internalLocal, func(s *corev1.Service) {
		s.Spec.HealthCheckNodePort = 32000
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "other", Port: 81})
	})
	first := build(t, service(spec), env(), slice("a", l1+" local", r1))
	p := first[0]
	for _, f := range p.Frontends[1:] {
		if f.Pool != p.Frontends[0].Pool || f.Inside != p.Frontends[1].Inside {
			t.Errorf("%s has its own pools", f.Kind)
		}
	}
	again := policy.Keep(first, build(t, service(spec), env(), slice("a", l1+" local", r1)))
	if !slices.Equal(first, again) {
		t.Error("equal ports do not keep their pointers")
	}
	more := policy.Keep(first, build(t, service(spec), env(), slice("a", l1+" local", r1, r2)))
	if more[0] == first[0] || more[1] != first[1] {
		t.Error("just the port whose endpoints changed should be new")
	}
	if more[0].Frontends[0].Pool != p.Frontends[0].Pool {
		t.Error("the Local pool did not change and should keep its pointer")
	}
	if more[0].HealthCheck != p.HealthCheck {
		t.Error("the health check did not change and should keep its pointer")
	}
	if got := poolOf(more[0].Frontends[1].Inside); got != at(l1, r1, r2) {
		t.Errorf("inside: %s", got)
	}
}

// TestPlace: what backends learn of where an endpoint is.
func TestPlace(t *testing.T) {
	for words, want := range map[string]struct{ local, unplaced, mayBeHere bool }{
		l1 + " local":   {local: true, mayBeHere: true},
		l1 + " nowhere": {unplaced: true, mayBeHere: true},
		l1:              {},
	} {
		e := build(t, service(loadBalancer), env(), slice("a", words))[0].Frontends[0].Pool.Endpoints[0]
		if e.Local != want.local || e.Unplaced != want.unplaced || e.MayBeHere() != want.mayBeHere {
			t.Errorf("%s: %+v", words, e)
		}
	}
}

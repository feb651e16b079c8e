package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// The tests say what an API server would: objects in, ServicePorts out. The node
// is "here", in zone "z1", at 192.0.2.1 and 2001:db8::1.

const here = "here"

func env() policy.Env {
	return policy.Env{
		Families:    []dataplane.Family{dataplane.IPv4, dataplane.IPv6},
		ExternalIPs: true,
		Zone:        "z1",
		NodeIPs:     []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		LocalPods:   dataplane.LocalPods{InterfacePrefix: "veth"},
	}
}

// service is shop/web at 10.96.0.1:80, changed as the test likes.
func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			ClusterIP:  "10.96.0.1",
			ClusterIPs: []string{"10.96.0.1"},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

// loadBalancer makes it one with every kind of frontend.
func loadBalancer(s *corev1.Service) {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Spec.Ports[0].NodePort = 30080
	s.Spec.ExternalIPs = []string{"198.51.100.1"}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func all(changes ...func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, c := range changes {
			c(s)
		}
	}
}

// slice is an EndpointSlice of shop/web, port "http" at 8080. Each endpoint is
// its address and words: local (on this node), unready, terminating (and still
// serving), stopped (terminating and serving no more), zone:Z and node:N (hints).
func slice(name string, endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(8080))}},
	}
	for _, words := range endpoints {
		f := strings.Fields(words)
		e := discoveryv1.Endpoint{Addresses: f[:1], NodeName: new("elsewhere")}
		if strings.Contains(f[0], ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, w := range f[1:] {
			apply(&e, w)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func apply(e *discoveryv1.Endpoint, word string) {
	conditions := func(ready, serving, terminating bool) {
		e.Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	kind, value, _ := strings.Cut(word, ":")
	if e.Hints == nil && value != "" {
		e.Hints = &discoveryv1.EndpointHints{}
	}
	switch kind {
	case "local":
		e.NodeName = new(here)
	case "nowhere":
		e.NodeName = nil
	case "ready":
		conditions(true, true, false)
	case "unready":
		conditions(false, false, false)
	case "published": // unready, of a Service with publishNotReadyAddresses
		conditions(true, false, false)
	case "serving": // not ready though it serves
		conditions(false, true, false)
	case "terminating":
		conditions(false, true, true)
	case "stopped":
		conditions(false, false, true)
	case "zone":
		e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
	case "node":
		e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
	default:
		panic("no such word: " + word)
	}
}

// build is the ServicePorts of a Service. Problems are failures.
func build(t *testing.T, s *corev1.Service, env policy.Env, eps ...*discoveryv1.EndpointSlice) []*dataplane.ServicePort {
	t.Helper()
	svc, problems := facts.FromService(s)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if svc == nil {
		return nil
	}
	var sets []*facts.Slice
	for _, e := range eps {
		set, problems := facts.FromSlice(e, here)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if set != nil {
			sets = append(sets, set)
		}
	}
	ports := policy.Ports(svc, policy.Frontends(svc, env.Families, env.ExternalIPs), sets, env, &policy.Room{})
	for _, p := range ports {
		checkExplained(t, p, svc, sets, env)
	}
	return ports
}

// checkExplained sees that Explain chooses for each frontend just who is in its
// pools, whatever a test is about.
func checkExplained(t *testing.T, p *dataplane.ServicePort, svc *facts.Service, sets []*facts.Slice, env policy.Env) {
	t.Helper()
	for _, port := range svc.Ports {
		if port.Name != p.ID.Port || port.Protocol != p.ID.Protocol {
			continue
		}
		x := policy.Explain(svc, port, p.ID.Family, sets, env)
		if x.ID != p.ID {
			t.Errorf("%s is explained as %s", p.ID, x.ID)
		}
		chosen := func(local bool) string {
			var words []string
			for _, e := range x.Endpoints {
				if e.In(local) == policy.Chosen {
					words = append(words, e.Addr.String())
				}
			}
			return strings.Join(words, " ")
		}
		for _, f := range p.Frontends {
			outside, inside := policy.LocalOnly(svc, f.Kind)
			for who, c := range map[string]struct{ said, is string }{
				"outside": {chosen(outside), poolOf(f.Pool)}, "inside": {chosen(inside), insideOf(f)},
			} {
				if c.is == "reject" || c.is == "drop" {
					c.is = ""
				}
				if c.said != c.is {
					t.Errorf("%s %s for clients %s: explained as %q, built as %q", p.ID, f.Kind, who, c.said, c.is)
				}
			}
		}
	}
}

// one is the only ServicePort of a family.
func one(t *testing.T, ports []*dataplane.ServicePort, f dataplane.Family) *dataplane.ServicePort {
	t.Helper()
	ports = slices.DeleteFunc(slices.Clone(ports), func(p *dataplane.ServicePort) bool { return p.ID.Family != f })
	if len(ports) != 1 {
		t.Fatalf("got %d ports of %s, wanted one", len(ports), f)
	}
	return ports[0]
}

// poolOf is a pool in words: the last bytes of its endpoints' addresses, or what
// becomes of connections.
func poolOf(p *dataplane.Pool) string {
	if p == nil {
		return "-"
	}
	if len(p.Endpoints) == 0 {
		return p.IfEmpty.String()
	}
	var words []string
	for _, e := range p.Endpoints {
		words = append(words, e.Addr.String())
	}
	return strings.Join(words, " ")
}

// insideOf is who answers the node and its pods.
func insideOf(f dataplane.Frontend) string {
	if f.Inside == nil {
		return poolOf(f.Pool)
	}
	return poolOf(f.Inside)
}

// frontendsOf lists the frontends of all ports as "ClusterIP TCP 10.96.0.1:80".
func frontendsOf(ports []*dataplane.ServicePort) []string {
	out := []string{}
	for _, p := range ports {
		for _, f := range p.Frontends {
			out = append(out, fmt.Sprintf("%s %s %s", f.Kind, p.ID.Protocol, f.Addr))
		}
	}
	return out
}

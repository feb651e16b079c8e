package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

var (
	randomServices = flag.Int("services", 220, "how many random Services `explain` is asked about")
	keepSite       = flag.Bool("keep", false, "after that, keep the agent and its lab for an hour, to look at by hand")
	onBackend      = flag.String("backend", "", "run just the tests of this backend")
	randomSeed     = flag.Uint64("seed", 0, "what makes them; 0: another each time")
)

// Times of connections, as the conformance table has them.
const (
	answerTime = 5 * time.Second
	dropTime   = 400 * time.Millisecond
)

// randomObjects makes Services that have everything which policy knows of.
type randomObjects struct {
	*rand.Rand
	lab *netlab.Lab
}

func (r randomObjects) one(of ...string) string { return of[r.IntN(len(of))] }

// service is the i-th Service, of two ports and both families.
func (r randomObjects) service(i int) *corev1.Service {
	ip := func(format4, format6 string) []string {
		return []string{fmt.Sprintf(format4, i/250, i%250+1), fmt.Sprintf(format6, i+1)}
	}
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "random", Name: fmt.Sprintf("service-%03d", i)},
	}
	s.Spec.ClusterIPs = ip("10.96.%d.%d", "fd96::%x")
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	for k, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: strings.ToLower(string(protocol)), Protocol: protocol, Port: int32(80 + k)})
	}
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy(r.one("Cluster", "Local")))
	s.Spec.Type = corev1.ServiceType(r.one("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"))
	if s.Spec.Type == corev1.ServiceTypeClusterIP {
		return s
	}
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(r.one("Cluster", "Local"))
	for k := range s.Spec.Ports {
		s.Spec.Ports[k].NodePort = int32(30000 + 2*i + k)
	}
	if r.IntN(3) == 0 {
		s.Spec.ExternalIPs = ip("10.98.%d.%d", "fd98::%x")
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, a := range ip("10.97.%d.%d", "fd97::%x") {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
		for _, h := range []*netlab.Host{r.lab.Clients[0], r.lab.Nodes[0].Host, r.lab.Nodes[0].Pods[2]} {
			if r.IntN(4) == 0 {
				for _, a := range h.Addrs {
					s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, netip.PrefixFrom(a, a.BitLen()).String())
				}
			}
		}
	}
	return s
}

// slices are a Service's EndpointSlices: some pods, in any state, with any hints.
func (r randomObjects) slices(s *corev1.Service) []any {
	hints := r.one("none", "none", "zones", "nodes", "some zones")
	all := []discoveryv1.Endpoint{}
	var hosts []*netlab.Host
	states := [][]string{{"ready"}, {"ready", "unready", "terminating", "stopped"}, {"unready", "terminating", "stopped"}}[r.IntN(3)]
	for n, node := range r.lab.Nodes {
		for _, pod := range node.Pods {
			if r.IntN(3) > 0 {
				continue
			}
			state := r.one(states...)
			zone := []string{"zone-a", "zone-b"}[n]
			e := discoveryv1.Endpoint{
				NodeName: new(node.Name), Zone: new(zone),
				Conditions: discoveryv1.EndpointConditions{
					Ready: new(state == "ready"), Serving: new(state == "ready" || state == "terminating"), Terminating: new(state == "terminating" || state == "stopped"),
				},
			}
			if hints == "zones" || hints == "nodes" || hints == "some zones" && r.IntN(2) == 0 {
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
			}
			if hints == "nodes" {
				e.Hints.ForNodes = []discoveryv1.ForNode{{Name: node.Name}}
			}
			all, hosts = append(all, e), append(hosts, pod)
		}
	}
	var out []any
	for k, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, k),
				Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
			AddressType: family,
			Endpoints:   slices.Clone(all),
		}
		for i := range slice.Endpoints {
			slice.Endpoints[i].Addresses = []string{hosts[i].Addrs[k].String()}
		}
		for _, port := range s.Spec.Ports {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(port.Name), Protocol: new(port.Protocol), Port: new(int32(podPort))})
		}
		out = append(out, slice)
	}
	return out
}

func serviceCIDR() *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd96::/112"}},
	}
}

// frontends are a Service's addresses in a family, at a port.
func (r randomObjects) frontends(s *corev1.Service, family, port int) []netip.AddrPort {
	number := uint16(s.Spec.Ports[port].Port)
	at := func(a string, n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), n) }
	out := []netip.AddrPort{at(s.Spec.ClusterIPs[family], number)}
	if len(s.Spec.ExternalIPs) > 0 {
		out = append(out, at(s.Spec.ExternalIPs[family], number))
	}
	if in := s.Status.LoadBalancer.Ingress; len(in) > 0 {
		out = append(out, at(in[family].IP, number))
	}
	if n := s.Spec.Ports[port].NodePort; n != 0 {
		out = append(out, netip.AddrPortFrom(r.lab.Nodes[0].Addrs[family], uint16(n)))
	}
	return out
}

// trip is a client and a frontend.
type trip struct {
	client   *netlab.Host
	from     netip.Addr
	to       netip.AddrPort
	protocol string
}

// TestExplainTellsWherePacketsGo asks `explain` about random Services, and then
// goes there.
func TestExplainTellsWherePacketsGo(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		seed := *randomSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Logf("-seed=%d makes the same Services again", seed)
		s := newSite(t, backend, []any{serviceCIDR()})
		r := randomObjects{rand.New(rand.NewPCG(seed, 1)), s.lab}
		objects := []any{serviceCIDR(), s.nodeObject()}
		var trips []trip
		for i := range *randomServices {
			svc := r.service(i)
			objects = append(append(objects, svc), r.slices(svc)...)
			for range 2 {
				family, port := r.IntN(2), r.IntN(2)
				at := r.frontends(svc, family, port)
				client := []*netlab.Host{s.node.Pods[0], s.node.Pods[2], s.node.Host, s.lab.Clients[0]}[r.IntN(4)]
				trips = append(trips, trip{client, client.Addrs[family], at[r.IntN(len(at))], []string{netlab.TCP, netlab.UDP}[port]})
			}
		}
		s.write(objects...)
		s.waitFor(*randomServices)

		outcomes := map[string]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		turn := make(chan struct{}, 16)
		for _, trip := range trips {
			all.Go(func() {
				turn <- struct{}{}
				defer func() { <-turn }()
				outcome := s.travel(t, trip)
				mu.Lock()
				outcomes[outcome]++
				mu.Unlock()
			})
		}
		all.Wait()
		s.checkKernel(t, trips[0])
		if *keepSite {
			fmt.Printf("switchyard --socket %s; nsenter --net=/run/netns/%s\n", s.socket, s.node.Namespace)
			time.Sleep(time.Hour)
		}
		t.Logf("%d Services, %d clients and frontends: %v", *randomServices, len(trips), outcomes)
	})
}

// waitFor waits until so many Services are in force.
func (s *site) waitFor(services int) {
	s.t.Helper()
	for range 1200 {
		var st inspect.Status
		if err := s.askJSON(&st, "status"); err == nil && st.Counts.Services == services && st.Sync.InForce == st.Sync.Wanted {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatal("the Services are not in force in time")
}

// checkKernel asks also what the kernel holds.
func (s *site) checkKernel(t *testing.T, trip trip) {
	var x inspect.Explanation
	if err := s.askJSON(&x, "explain", trip.to.String()+"/"+trip.protocol); err != nil {
		t.Fatal(err)
	}
	if x.Kernel == nil || !x.Kernel.Agrees || x.Kernel.Holds == nil || x.Kernel.Elsewhere > 0 {
		t.Errorf("%s: the kernel is said to be %+v", trip.to, x.Kernel)
	}
}

// travel compares what is said with what happens.
func (s *site) travel(t *testing.T, trip trip) string {
	what := fmt.Sprintf("%s %s from %s (%s)", strings.ToUpper(trip.protocol), trip.to, trip.client.Name, trip.from)
	var x inspect.Explanation
	if err := s.askJSON(&x, "explain", "--kernel=false", "--from", trip.from.String(), trip.to.String()+"/"+trip.protocol); err != nil {
		t.Errorf("%s: %v", what, err)
		return "error"
	}
	if x.Service == nil || len(x.Clients) != 1 {
		t.Errorf("%s: explained as %+v", what, x)
		return "error"
	}
	c := x.Clients[0]
	said := fmt.Sprintf("%s: said to be %s %v", what, c.Outcome, c.Rules)
	for range 4 {
		a, err := trip.client.Ask(netlab.Request{Protocol: trip.protocol, To: trip.to, Timeout: map[bool]time.Duration{true: dropTime, false: answerTime}[c.Outcome == inspect.Dropped]})
		if err != nil {
			t.Errorf("%s: %v", said, err)
			return "error"
		}
		s.compare(t, said, trip, c, a)
		if c.Outcome == inspect.Dropped {
			break
		}
	}
	return c.Outcome
}

func (s *site) compare(t *testing.T, said string, trip trip, c inspect.ClientAnswer, a netlab.Answer) {
	want := map[string]netlab.Outcome{inspect.Balanced: netlab.Answered, inspect.Rejected: netlab.Refused, inspect.Dropped: netlab.TimedOut}[c.Outcome]
	if a.Outcome != want {
		t.Errorf("%s; was %s", said, a)
		return
	}
	if a.Outcome != netlab.Answered {
		return
	}
	server := s.lab.Host(a.Server)
	endpoint := netip.AddrPortFrom(server.Addrs[map[bool]int{true: 0, false: 1}[trip.to.Addr().Is4()]], podPort).String()
	if !slices.ContainsFunc(c.Endpoints, func(e inspect.Endpoint) bool { return e.Address == endpoint }) {
		t.Errorf("%s; answered by %s (%s), which is not among %v", said, a.Server, endpoint, c.Endpoints)
	}
	masqueraded := a.Source.Addr() != trip.from
	if trip.client == s.node.Host {
		return // it has several addresses, and the node's is its own
	}
	if want := c.Masqueraded || endpoint == c.Itself; masqueraded != want {
		t.Errorf("%s, masqueraded %v (%s); %s saw %s", said, want, c.MasqueradeRule, a.Server, a.Source)
	}
}

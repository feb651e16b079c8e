package facts

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	utilnet "k8s.io/utils/net"
)

// Labels that take an object away from the proxy, whatever their value
// (KUBE-PROXY §0).
const (
	ProxyNameLabel = "service.kubernetes.io/service-proxy-name" // on a Service
	HeadlessLabel  = corev1.IsHeadlessService                   // on an EndpointSlice
)

// SchedulerAnnotation on a Service says how the IPVS backend chooses among its
// endpoints.
const SchedulerAnnotation = "switchyard.io/ipvs-scheduler"

// autoscalerTaint is on a Node that the cluster autoscaler is about to remove.
const autoscalerTaint = "ToBeDeletedByClusterAutoscaler"

// defaultAffinity and maxAffinity are the API's default and limit of a
// ClientIP affinity's timeout.
const (
	defaultAffinity = 3 * time.Hour
	maxAffinity     = 24 * time.Hour
)

// FromService takes the facts of a Service; nil: there is nothing to forward
// (KUBE-PROXY §1.1). Problems are parts that make no sense and are left out; an
// API server lets none through.
func FromService(s *corev1.Service) (*Service, []error) {
	if _, other := s.Labels[ProxyNameLabel]; other || s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	var p problems
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	if ips[0] == "" || ips[0] == corev1.ClusterIPNone {
		return nil, nil
	}
	f := &Service{
		Name:          Name{s.Namespace, s.Name},
		UID:           string(s.UID),
		ClusterIPs:    p.addrs("spec.clusterIPs", ips),
		ExternalIPs:   p.addrs("spec.externalIPs", s.Spec.ExternalIPs),
		Ports:         p.servicePorts(s.Spec.Ports),
		InternalLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal: externalLocal(s),
		Affinity:      p.affinity(s),
		Scheduler:     p.scheduler(s),
	}
	if t := s.CreationTimestamp; !t.IsZero() {
		f.Created = t.Unix()
	}
	p.loadBalancer(f, s)
	if f.ExternalLocal && s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		f.HealthCheckPort = p.port("spec.healthCheckNodePort", s.Spec.HealthCheckNodePort)
	}
	if len(f.ClusterIPs) == 0 || len(f.Ports) == 0 {
		return nil, p
	}
	texts := []*string{&f.Name.Namespace, &f.Name.Name, &f.UID, &f.Scheduler}
	for i := range f.Ports {
		texts = append(texts, &f.Ports[i].Name)
	}
	pack(texts...)
	return f, p
}

// pack makes texts parts of one: of tens of thousands of objects, some texts each
// would be more blocks of memory than all the rest, among blocks of what else the
// object held.
func pack(texts ...*string) {
	n := 0
	for _, t := range texts {
		n += len(*t)
	}
	var b strings.Builder
	b.Grow(n)
	for _, t := range texts {
		b.WriteString(*t)
	}
	rest := b.String()
	for _, t := range texts {
		*t, rest = rest[:len(*t)], rest[len(*t):]
	}
}

// externalLocal is externalTrafficPolicy: Local where it counts: not on a
// Service of type ClusterIP that has no external address either.
func externalLocal(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	default:
		if len(s.Spec.ExternalIPs) == 0 {
			return false
		}
	}
	return s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// FromSlice takes the facts of an EndpointSlice; nil: it is of no Service or of
// no address family (KUBE-PROXY §1.2). node is this node's name.
func FromSlice(s *discoveryv1.EndpointSlice, node string) (*Slice, []error) {
	service := s.Labels[discoveryv1.LabelServiceName]
	if _, headless := s.Labels[HeadlessLabel]; headless || service == "" {
		return nil, nil
	}
	f := &Slice{Name: Name{s.Namespace, s.Name}, Service: service}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4:
		f.Family = dataplane.IPv4
	case discoveryv1.AddressTypeIPv6:
		f.Family = dataplane.IPv6
	default:
		return nil, nil
	}
	var p problems
	f.Ports = p.slicePorts(s.Ports)
	f.Endpoints = make([]Endpoint, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		field := func() string { return fmt.Sprintf("endpoints[%d].addresses[0]", i) }
		if len(e.Addresses) == 0 {
			p.add("%s: missing", field())
			continue
		}
		// The API gives further addresses no meaning.
		addr, ok := ParseAddr(e.Addresses[0])
		if !ok || dataplane.FamilyOf(addr) != f.Family {
			p.add("%s: %q is no %s address", field(), e.Addresses[0], f.Family)
			continue
		}
		f.Endpoints = append(f.Endpoints, endpoint(e, addr, node))
	}
	// The order means nothing, and policy has less to sort then.
	slices.SortStableFunc(f.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	if v := s.Annotations[corev1.EndpointsLastChangeTriggerTime]; v != "" {
		f.Trigger, _ = time.Parse(time.RFC3339Nano, v) // a bad one is as good as none
	}
	texts := []*string{&f.Name.Namespace, &f.Name.Name, &f.Service}
	for i := range f.Ports {
		texts = append(texts, &f.Ports[i].Name)
	}
	pack(texts...)
	return f, p
}

func endpoint(e *discoveryv1.Endpoint, addr netip.Addr, node string) Endpoint {
	f := Endpoint{
		Addr:        addr,
		Ready:       e.Conditions.Ready == nil || *e.Conditions.Ready,
		Serving:     e.Conditions.Serving == nil || *e.Conditions.Serving,
		Terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
		Local:       e.NodeName != nil && *e.NodeName == node && node != "",
	}
	var zones []string
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			zones = append(zones, z.Name)
		}
		f.NodeHinted = len(e.Hints.ForNodes) > 0
		f.ForThisNode = slices.ContainsFunc(e.Hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == node })
	}
	f.Place = MakePlace(deref(e.NodeName), deref(e.Zone), zones...)
	return f
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// FromNode takes the facts of a Node.
func FromNode(n *corev1.Node) (*Node, []error) {
	var p problems
	f := &Node{
		Name:     Name{Name: n.Name},
		Zone:     n.Labels[corev1.LabelTopologyZone],
		Eligible: n.DeletionTimestamp.IsZero(),
	}
	for _, t := range n.Spec.Taints {
		if t.Key == autoscalerTaint {
			f.Eligible = false
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	f.PodCIDRs = p.prefixes("spec.podCIDRs", cidrs)
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for i, a := range n.Status.Addresses {
			if a.Type != kind {
				continue
			}
			ip, ok := ParseAddr(a.Address)
			if !ok {
				p.add("status.addresses[%d].address: %q is no IP address", i, a.Address)
				continue
			}
			if !slices.ContainsFunc(f.IPs, func(b netip.Addr) bool { return dataplane.FamilyOf(b) == dataplane.FamilyOf(ip) }) {
				f.IPs = append(f.IPs, ip)
			}
		}
	}
	return f, p
}

// FromServiceCIDR takes the facts of a ServiceCIDR.
func FromServiceCIDR(c *networkingv1.ServiceCIDR) (*ServiceCIDR, []error) {
	var p problems
	f := &ServiceCIDR{Name: Name{Name: c.Name}, CIDRs: p.prefixes("spec.cidrs", c.Spec.CIDRs)}
	return f, p
}

// ParseAddr parses an IP address, also one with leading zeros, which are
// decimal. An IPv4-mapped IPv6 address is the IPv4 address.
func ParseAddr(s string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(utilnet.ParseIPSloppy(s))
	return a.Unmap(), ok
}

// ParsePrefix parses a CIDR as ParseAddr does, spaces around it allowed, and
// masks it.
func ParsePrefix(s string) (netip.Prefix, bool) {
	_, n, err := utilnet.ParseCIDRSloppy(strings.TrimSpace(s))
	if err != nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits), ok
}

// problems gathers what makes no sense in an object.
type problems []error

// mostOfProblem bounds the bytes of what is said of one problem: it holds values
// of a tenant's.
const mostOfProblem = 300

func (p *problems) add(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(text) > mostOfProblem {
		text = strings.ToValidUTF8(text[:mostOfProblem], "") + "…"
	}
	*p = append(*p, errors.New(text))
}

func (p *problems) addrs(field string, in []string) []netip.Addr {
	var out []netip.Addr
	for i, s := range in {
		a, ok := ParseAddr(s)
		if !ok {
			p.add("%s[%d]: %q is no IP address", field, i, s)
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (p *problems) prefixes(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		c, ok := ParsePrefix(s)
		if !ok {
			p.add("%s[%d]: %q is no CIDR", field, i, s)
			continue
		}
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func (p *problems) port(field string, n int32) uint16 {
	if n < 0 || n > 65535 {
		p.add("%s: %d is no port number", field, n)
		return 0
	}
	return uint16(n)
}

func (p *problems) protocol(field string, in corev1.Protocol) dataplane.Protocol {
	switch in {
	case corev1.ProtocolTCP, "":
		return dataplane.TCP
	case corev1.ProtocolUDP:
		return dataplane.UDP
	case corev1.ProtocolSCTP:
		return dataplane.SCTP
	}
	p.add("%s: %q is none of TCP, UDP, SCTP", field, in)
	return 0
}

func (p *problems) servicePorts(in []corev1.ServicePort) []ServicePort {
	out := make([]ServicePort, 0, len(in))
	for i := range in {
		field := fmt.Sprintf("spec.ports[%d]", i)
		f := ServicePort{
			Name:     in[i].Name,
			Protocol: p.protocol(field+".protocol", in[i].Protocol),
			Port:     p.port(field+".port", in[i].Port),
			NodePort: p.port(field+".nodePort", in[i].NodePort),
		}
		if f.Protocol != 0 && f.Port != 0 {
			out = append(out, f)
		}
	}
	return out
}

// slicePorts leaves out ports without a name or number. What the API says of a
// port without a number is not for Services; kube-proxy passes it over too.
func (p *problems) slicePorts(in []discoveryv1.EndpointPort) []SlicePort {
	out := make([]SlicePort, 0, len(in))
	for i := range in {
		if in[i].Name == nil || in[i].Port == nil || *in[i].Port == 0 {
			continue
		}
		field := fmt.Sprintf("ports[%d]", i)
		f := SlicePort{Name: *in[i].Name, Protocol: dataplane.TCP, Port: p.port(field+".port", *in[i].Port)}
		if in[i].Protocol != nil {
			f.Protocol = p.protocol(field+".protocol", *in[i].Protocol)
		}
		if f.Protocol != 0 && f.Port != 0 {
			out = append(out, f)
		}
	}
	return out
}

func (p *problems) affinity(s *corev1.Service) time.Duration {
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	c := s.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	t := time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	if t <= 0 || t > maxAffinity {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d is not from 1 to 86400", *c.ClientIP.TimeoutSeconds)
		return defaultAffinity
	}
	return t
}

// scheduler takes the annotation; one that is unknown leaves the default in force.
func (p *problems) scheduler(s *corev1.Service) string {
	name, ok := s.Annotations[SchedulerAnnotation]
	if !ok {
		return ""
	}
	if !slices.Contains(dataplane.Schedulers(), name) {
		p.add("metadata.annotations[%s]: %q is not one of %s; the default is in force",
			SchedulerAnnotation, name, strings.Join(dataplane.Schedulers(), ", "))
		return ""
	}
	return name
}

// loadBalancer takes the ingress addresses and who may use them. An ipMode
// other than VIP and a bare hostname mean that traffic arrives by other ways.
func (p *problems) loadBalancer(f *Service, s *corev1.Service) {
	var ips []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			ips = append(ips, in.IP)
		}
	}
	f.LoadBalancerIPs = p.addrs("status.loadBalancer.ingress", ips)
	f.SourceRanges = p.prefixes("spec.loadBalancerSourceRanges", s.Spec.LoadBalancerSourceRanges)
	if len(f.SourceRanges) < 1 && len(s.Spec.LoadBalancerSourceRanges) > 0 {
		// Nothing left of a wish to keep others out: serving everyone would be worse than nobody.
		f.LoadBalancerIPs = nil
	}
}

package manifests

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

const (
	maxPort       = 65535
	maxAffinity   = 86400 // seconds
	maxClusterIPs = 2     // one of each family
)

// check gathers errors of one object. It looks at what the proxy uses.
type check struct{ errs field.ErrorList }

func (c *check) add(e *field.Error) { c.errs = append(c.errs, e) }

func (c *check) meta(m *metav1.ObjectMeta, namespaced bool) {
	path := field.NewPath("metadata")
	if m.Name == "" {
		c.add(field.Required(path.Child("name"), ""))
	} else if why := validation.IsDNS1123Subdomain(m.Name); len(why) > 0 {
		c.add(field.Invalid(path.Child("name"), m.Name, why[0]))
	}
	if !namespaced {
		return
	}
	if why := validation.IsDNS1123Label(m.Namespace); len(why) > 0 {
		c.add(field.Invalid(path.Child("namespace"), m.Namespace, why[0]))
	}
}

func (c *check) port(path *field.Path, n int32) {
	if n < 1 || n > maxPort {
		c.add(field.Invalid(path, n, "allowed is 1 to 65535"))
	}
}

// optionalPort allows 0 for none.
func (c *check) optionalPort(path *field.Path, n int32) {
	if n != 0 {
		c.port(path, n)
	}
}

func (c *check) portName(path *field.Path, name string) {
	if name == "" {
		return
	}
	if why := validation.IsDNS1123Label(name); len(why) > 0 {
		c.add(field.Invalid(path, name, why[0]))
	}
}

func (c *check) protocol(path *field.Path, p corev1.Protocol) {
	oneOf(c, path, p, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func oneOf[T ~string](c *check, path *field.Path, v T, allowed ...T) {
	if !slices.Contains(allowed, v) {
		c.add(field.NotSupported(path, v, allowed))
	}
}

// ip checks an address that packets are sent to or answered at.
func (c *check) ip(path *field.Path, s string) (netip.Addr, bool) {
	a, ok := facts.ParseAddr(s)
	if !ok {
		c.add(field.Invalid(path, s, "allowed is an IP address"))
		return a, false
	}
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		c.add(field.Invalid(path, s, "an unspecified, loopback, multicast or link-local address is not allowed"))
		return a, false
	}
	return a, true
}

func (c *check) cidr(path *field.Path, s string) {
	if _, ok := facts.ParsePrefix(s); !ok {
		c.add(field.Invalid(path, s, "allowed is a CIDR such as 10.0.0.0/8 or fd00::/64"))
	}
}

func (c *check) cidrs(path *field.Path, in []string) {
	for i, s := range in {
		c.cidr(path.Index(i), s)
	}
}

func validateService(s *corev1.Service) field.ErrorList {
	c := &check{}
	c.meta(&s.ObjectMeta, true)
	spec, path := &s.Spec, field.NewPath("spec")
	oneOf(c, path.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	if spec.Type == corev1.ServiceTypeExternalName {
		return c.errs
	}
	c.clusterIPs(path, spec)
	c.servicePorts(path.Child("ports"), spec)
	for i, ip := range spec.ExternalIPs {
		c.ip(path.Child("externalIPs").Index(i), ip)
	}
	c.cidrs(path.Child("loadBalancerSourceRanges"), spec.LoadBalancerSourceRanges)
	c.optionalPort(path.Child("healthCheckNodePort"), spec.HealthCheckNodePort)
	c.policies(path, spec)
	ingress := field.NewPath("status", "loadBalancer", "ingress")
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			c.ip(ingress.Index(i).Child("ip"), in.IP)
		}
		if in.IPMode != nil {
			oneOf(c, ingress.Index(i).Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)
		}
	}
	return c.errs
}

func (c *check) clusterIPs(path *field.Path, spec *corev1.ServiceSpec) {
	ips := path.Child("clusterIPs")
	switch {
	case spec.ClusterIP == "":
		c.add(field.Required(path.Child("clusterIP"), "there is no API server that would allocate one; None makes a headless Service"))
		return
	case spec.ClusterIP != spec.ClusterIPs[0]:
		c.add(field.Invalid(path.Child("clusterIP"), spec.ClusterIP, "must be the first of clusterIPs, "+spec.ClusterIPs[0]))
		return
	case len(spec.ClusterIPs) > maxClusterIPs:
		c.add(field.TooMany(ips, len(spec.ClusterIPs), maxClusterIPs))
		return
	case spec.ClusterIP == corev1.ClusterIPNone:
		if len(spec.ClusterIPs) > 1 {
			c.add(field.Invalid(ips, spec.ClusterIPs, "None stands alone"))
		}
		return
	}
	var families []corev1.IPFamily
	for i, ip := range spec.ClusterIPs {
		a, ok := c.ip(ips.Index(i), ip)
		if !ok {
			return
		}
		family := corev1.IPv6Protocol
		if dataplane.FamilyOf(a) == dataplane.IPv4 {
			family = corev1.IPv4Protocol
		}
		if slices.Contains(families, family) {
			c.add(field.Invalid(ips.Index(i), ip, "allowed is one address of each family"))
		}
		families = append(families, family)
	}
	for i, f := range spec.IPFamilies {
		if i >= len(families) || f != families[i] {
			c.add(field.Invalid(path.Child("ipFamilies").Index(i), f, fmt.Sprintf("must be as the clusterIPs are: %v", families)))
		}
	}
}

func (c *check) servicePorts(path *field.Path, spec *corev1.ServiceSpec) {
	if len(spec.Ports) == 0 && spec.ClusterIP != corev1.ClusterIPNone {
		c.add(field.Required(path, "a Service has at least one port"))
	}
	type number struct {
		port     int32
		protocol corev1.Protocol
	}
	ports, nodePorts, names := map[number]bool{}, map[number]bool{}, map[string]bool{}
	for i := range spec.Ports {
		p, path := &spec.Ports[i], path.Index(i)
		c.portName(path.Child("name"), p.Name)
		if p.Name == "" && len(spec.Ports) > 1 {
			c.add(field.Required(path.Child("name"), "each of several ports has a name"))
		} else if names[p.Name] {
			c.add(field.Duplicate(path.Child("name"), p.Name))
		}
		names[p.Name] = true
		c.protocol(path.Child("protocol"), p.Protocol)
		c.port(path.Child("port"), p.Port)
		c.optionalPort(path.Child("nodePort"), p.NodePort)
		at := number{p.Port, p.Protocol}
		if ports[at] {
			c.add(field.Duplicate(path, fmt.Sprintf("%s %d", p.Protocol, p.Port)))
		}
		ports[at] = true
		at.port = p.NodePort
		switch {
		case p.NodePort == 0 && spec.Type == corev1.ServiceTypeNodePort:
			c.add(field.Required(path.Child("nodePort"), "there is no API server that would allocate one"))
		case p.NodePort != 0 && spec.Type == corev1.ServiceTypeClusterIP:
			c.add(field.Forbidden(path.Child("nodePort"), "a Service of type ClusterIP has none"))
		case p.NodePort != 0 && nodePorts[at]:
			c.add(field.Duplicate(path.Child("nodePort"), p.NodePort))
		}
		nodePorts[at] = true
	}
}

func (c *check) policies(path *field.Path, spec *corev1.ServiceSpec) {
	oneOf(c, path.Child("internalTrafficPolicy"), *spec.InternalTrafficPolicy,
		corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	if spec.ExternalTrafficPolicy != "" {
		oneOf(c, path.Child("externalTrafficPolicy"), spec.ExternalTrafficPolicy,
			corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	oneOf(c, path.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP)
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return
	}
	if t := *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds; t < 1 || t > maxAffinity {
		c.add(field.Invalid(path.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t, "allowed is 1 to 86400"))
	}
}

func validateSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	c := &check{}
	c.meta(&s.ObjectMeta, true)
	if s.Labels[discoveryv1.LabelServiceName] == "" {
		c.add(field.Required(field.NewPath("metadata", "labels").Key(discoveryv1.LabelServiceName), "it names the Service"))
	}
	oneOf(c, field.NewPath("addressType"), s.AddressType,
		discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	names := map[string]bool{}
	for i, p := range s.Ports {
		path := field.NewPath("ports").Index(i)
		c.portName(path.Child("name"), *p.Name)
		if names[*p.Name] {
			c.add(field.Duplicate(path.Child("name"), *p.Name))
		}
		names[*p.Name] = true
		c.protocol(path.Child("protocol"), *p.Protocol)
		if p.Port == nil {
			c.add(field.Required(path.Child("port"), "allowed is 1 to 65535"))
		} else {
			c.port(path.Child("port"), *p.Port)
		}
	}
	if s.AddressType != discoveryv1.AddressTypeFQDN {
		c.endpoints(s)
	}
	return c.errs
}

func (c *check) endpoints(s *discoveryv1.EndpointSlice) {
	for i := range s.Endpoints {
		path := field.NewPath("endpoints").Index(i)
		if len(s.Endpoints[i].Addresses) == 0 {
			c.add(field.Required(path.Child("addresses"), "an endpoint has an address"))
		}
		for j, ip := range s.Endpoints[i].Addresses {
			a, ok := c.ip(path.Child("addresses").Index(j), ip)
			if ok && dataplane.FamilyOf(a).String() != string(s.AddressType) {
				c.add(field.Invalid(path.Child("addresses").Index(j), ip, "allowed is an address of the addressType, "+string(s.AddressType)))
			}
		}
	}
}

func validateNode(n *corev1.Node) field.ErrorList {
	c := &check{}
	c.meta(&n.ObjectMeta, false)
	c.cidrs(field.NewPath("spec", "podCIDRs"), n.Spec.PodCIDRs)
	if n.Spec.PodCIDR != "" {
		c.cidr(field.NewPath("spec", "podCIDR"), n.Spec.PodCIDR)
	}
	path := field.NewPath("status", "addresses")
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if _, ok := facts.ParseAddr(a.Address); !ok {
			c.add(field.Invalid(path.Index(i).Child("address"), a.Address, "allowed is an IP address"))
		}
	}
	return c.errs
}

func validateServiceCIDR(s *networkingv1.ServiceCIDR) field.ErrorList {
	c := &check{}
	c.meta(&s.ObjectMeta, false)
	if len(s.Spec.CIDRs) == 0 {
		c.add(field.Required(field.NewPath("spec", "cidrs"), "at least one CIDR"))
	}
	c.cidrs(field.NewPath("spec", "cidrs"), s.Spec.CIDRs)
	return c.errs
}

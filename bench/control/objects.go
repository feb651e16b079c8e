package control

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Namespace holds all objects of the benchmark.
const Namespace = "bench"

// Port is a port of a Service and of its endpoints.
type Port struct {
	Protocol     corev1.Protocol
	Port, Target int32
}

// Service is a Service to create.
type Service struct {
	Name      string
	Ports     []Port
	DualStack bool
	NodePort  bool // also a NodePort for each port, of the API server's choice
	Local     bool // externalTrafficPolicy
	Endpoints []Endpoint
	// Changed is when the endpoints changed, as the controller notes it on
	// EndpointSlices. Zero means that nothing is noted.
	Changed time.Time
}

// Endpoint is a pod behind a Service.
type Endpoint struct {
	Addrs []netip.Addr // IPv4, then IPv6
	Node  string
}

// Placed is a Service as the API server made it.
type Placed struct {
	Service
	ClusterIPs []netip.Addr // IPv4, then IPv6
	NodePorts  []uint16     // in the order of Ports
}

// ClusterIP is where the n-th port answers, by IP version.
func (p *Placed) ClusterIP(version, n int) netip.AddrPort {
	a := p.ClusterIPs[0]
	if version == 6 {
		a = p.ClusterIPs[1]
	}
	return netip.AddrPortFrom(a, uint16(p.Ports[n].Port))
}

// Versions are the IP versions that the Service has.
func (p *Placed) Versions() []int { return []int{4, 6}[:len(p.ClusterIPs)] }

// createNamespace makes the namespace of all objects.
func (p *Plane) createNamespace(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}
	if err := p.core.Post().Resource("namespaces").Body(ns).Do(ctx).Error(); err != nil {
		return fmt.Errorf("creating namespace %s: %w", Namespace, err)
	}
	return nil
}

// CreateNode tells the API server of a lab's node.
func (p *Plane) CreateNode(ctx context.Context, n *netlab.Node) error {
	return p.CreateNodeNamed(ctx, n.Name, n.PodCIDRs, n.Addrs)
}

// CreateNodeNamed tells the API server of a node that need not exist.
func (p *Plane) CreateNodeNamed(ctx context.Context, name string, podCIDRs []netip.Prefix, addrs []netip.Addr) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	for _, c := range podCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, c.String())
	}
	if len(podCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
	for _, a := range addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	if err := p.core.Post().Resource("nodes").Body(node).Do(ctx).Error(); err != nil {
		return fmt.Errorf("creating Node %s: %w", name, err)
	}
	return nil
}

// Create creates a Service: its endpoints first, so that it works at once.
func (p *Plane) Create(ctx context.Context, s Service) (*Placed, error) {
	for _, slice := range endpointSlices(s) {
		if err := p.discovery.Post().Namespace(Namespace).Resource("endpointslices").Body(slice).Do(ctx).Error(); err != nil {
			return nil, fmt.Errorf("creating EndpointSlice %s: %w", slice.Name, err)
		}
	}
	return p.CreateService(ctx, s)
}

// CreateService creates just the Service.
func (p *Plane) CreateService(ctx context.Context, s Service) (*Placed, error) {
	made := &corev1.Service{}
	if err := p.core.Post().Namespace(Namespace).Resource("services").Body(object(s)).Do(ctx).Into(made); err != nil {
		return nil, fmt.Errorf("creating Service %s: %w", s.Name, err)
	}
	placed := &Placed{Service: s}
	for _, text := range made.Spec.ClusterIPs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("Service %s: %w", s.Name, err)
		}
		placed.ClusterIPs = append(placed.ClusterIPs, a)
	}
	for _, port := range made.Spec.Ports {
		placed.NodePorts = append(placed.NodePorts, uint16(port.NodePort))
	}
	return placed, nil
}

// SetEndpoints replaces the endpoints of a Service that has just a few.
func (p *Plane) SetEndpoints(ctx context.Context, s Service) error {
	for _, slice := range endpointSlices(s) {
		if err := p.set(ctx, slice); err != nil {
			return err
		}
	}
	return nil
}

// SetSlice replaces the endpoints of one EndpointSlice of an IPv4 Service, which
// has no more ports than one holds: of SliceEndpoints endpoints, the n-th ones.
func (p *Plane) SetSlice(ctx context.Context, s Service, n int) error {
	o := slice(s, 0, 0, n*SliceEndpoints)
	o.Name, o.AddressType = sliceName(s, n), discoveryv1.AddressTypeIPv4
	return p.set(ctx, o)
}

func sliceName(s Service, n int) string { return fmt.Sprintf("%s-%d", s.Name, n) }

func (p *Plane) set(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	if err := p.discovery.Put().Namespace(Namespace).Resource("endpointslices").Name(slice.Name).Body(slice).Do(ctx).Error(); err != nil {
		return fmt.Errorf("changing EndpointSlice %s: %w", slice.Name, err)
	}
	return nil
}

// Delete deletes a Service and its endpoints.
func (p *Plane) Delete(ctx context.Context, s Service) error {
	if err := p.core.Delete().Namespace(Namespace).Resource("services").Name(s.Name).Do(ctx).Error(); err != nil {
		return fmt.Errorf("deleting Service %s: %w", s.Name, err)
	}
	for _, slice := range endpointSlices(s) {
		if err := p.discovery.Delete().Namespace(Namespace).Resource("endpointslices").Name(slice.Name).Do(ctx).Error(); err != nil {
			return fmt.Errorf("deleting EndpointSlice %s: %w", slice.Name, err)
		}
	}
	return nil
}

func object(s Service) *corev1.Service {
	o := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: s.Name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP},
	}
	if s.NodePort {
		o.Spec.Type = corev1.ServiceTypeNodePort
	}
	if s.Local {
		o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if s.DualStack {
		o.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		o.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	for i, port := range s.Ports {
		o.Spec.Ports = append(o.Spec.Ports, corev1.ServicePort{Name: portName(i), Protocol: port.Protocol, Port: port.Port, TargetPort: intstr.FromInt32(port.Target)})
	}
	return o
}

func portName(i int) string { return fmt.Sprintf("p%d", i) }

// SliceEndpoints is how many endpoints one EndpointSlice has at most, as the
// controller has it; slicePorts is the API's limit.
const (
	SliceEndpoints = 100
	slicePorts     = 100
)

// endpointSlices are the EndpointSlices of a Service.
func endpointSlices(s Service) []*discoveryv1.EndpointSlice {
	types := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	if s.DualStack {
		types = append(types, discoveryv1.AddressTypeIPv6)
	}
	var out []*discoveryv1.EndpointSlice
	for family, kind := range types {
		for port := 0; port < len(s.Ports); port += slicePorts {
			for first := 0; first == 0 || first < len(s.Endpoints); first += SliceEndpoints {
				o := slice(s, family, port, first)
				o.Name, o.AddressType = sliceName(s, len(out)), kind
				out = append(out, o)
			}
		}
	}
	return out
}

// slice is one of them: ports and endpoints from these on.
func slice(s Service, family, port, first int) *discoveryv1.EndpointSlice {
	o := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: Namespace, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
	}}
	if !s.Changed.IsZero() {
		o.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: s.Changed.Format(time.RFC3339Nano)}
	}
	for i, p := range s.Ports[port:min(port+slicePorts, len(s.Ports))] {
		o.Ports = append(o.Ports, discoveryv1.EndpointPort{Name: new(portName(port + i)), Protocol: new(p.Protocol), Port: new(p.Target)})
	}
	for _, e := range s.Endpoints[first:min(first+SliceEndpoints, len(s.Endpoints))] {
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{e.Addrs[family].String()}, NodeName: new(e.Node),
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
		})
	}
	return o
}

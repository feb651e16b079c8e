package manifests

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// affinityTimeout is the API's default, in seconds.
const affinityTimeout = 10800

// defaultService fills in what an API server would have.
func defaultService(s *corev1.Service) {
	setDefault(&s.Namespace, metav1.NamespaceDefault)
	spec := &s.Spec
	setDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	setDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	for i := range spec.Ports {
		setDefault(&spec.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		if spec.SessionAffinityConfig == nil {
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
		}
		if spec.SessionAffinityConfig.ClientIP == nil {
			spec.SessionAffinityConfig.ClientIP = &corev1.ClientIPConfig{}
		}
		setDefaultTo(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, int32(affinityTimeout))
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	setDefaultTo(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	if spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer || len(spec.ExternalIPs) > 0 {
		setDefault(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	defaultClusterIPs(spec)
}

func defaultClusterIPs(spec *corev1.ServiceSpec) {
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if len(spec.ClusterIPs) > 0 {
		setDefault(&spec.ClusterIP, spec.ClusterIPs[0])
	}
	if len(spec.IPFamilies) > 0 || spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	for _, ip := range spec.ClusterIPs {
		if a, ok := facts.ParseAddr(ip); ok && dataplane.FamilyOf(a) == dataplane.IPv4 {
			spec.IPFamilies = append(spec.IPFamilies, corev1.IPv4Protocol)
		} else {
			spec.IPFamilies = append(spec.IPFamilies, corev1.IPv6Protocol)
		}
	}
}

// defaultSlice fills in what an API server would have.
func defaultSlice(s *discoveryv1.EndpointSlice) {
	setDefault(&s.Namespace, metav1.NamespaceDefault)
	for i := range s.Ports {
		setDefaultTo(&s.Ports[i].Name, "")
		setDefaultTo(&s.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func setDefaultTo[T any](v **T, value T) {
	if *v == nil {
		*v = &value
	}
}

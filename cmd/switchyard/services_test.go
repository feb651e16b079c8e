package main

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// TestGetServicesCountsConnections has a client outside hold a connection to a
// NodePort.
func TestGetServicesCountsConnections(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		s := newSite(t, backend, []any{serviceCIDR()})
		pod := s.node.Pods[0]
		s.writeWeb(pod)
		held, err := s.lab.Clients[0].Hold(netlab.Request{Protocol: netlab.TCP, To: s.webNodePort()}, 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = held.Stop() }()
		time.Sleep(300 * time.Millisecond)
		var got inspect.Services
		if err := s.askJSON(&got, "get", "services", "shop/web"); err != nil {
			t.Fatal(err)
		}
		if len(got.Services) != 1 || len(got.Services[0].Endpoints) != 1 {
			t.Fatalf("got %+v", got)
		}
		e := got.Services[0].Endpoints[0]
		if e.Address != netip.AddrPortFrom(pod.Addrs[0], podPort).String() || e.Node != s.node.Name || e.Zone != "zone-a" || !e.Local || len(e.UsedBy) != 3 || e.Connections == nil || *e.Connections != 1 {
			t.Errorf("got %+v with connections %v, counted %q; want one connection to %s", e, e.Connections, got.Counted, pod.Name)
		}
	})
}

// writeWeb makes one pod of the node all of Service shop/web, which has a
// NodePort. There are others beside it.
func (s *site) writeWeb(pod *netlab.Host, others ...any) {
	s.t.Helper()
	s.write(append(others, serviceCIDR(), s.nodeObject(), &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080}}},
	}, &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(podPort))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{pod.Addrs[0].String()}, NodeName: new(s.node.Name), Zone: new("zone-a")}},
	})...)
	s.waitFor(1 + len(others))
}

func (s *site) webNodePort() netip.AddrPort { return netip.AddrPortFrom(s.node.Addrs[0], 30080) }

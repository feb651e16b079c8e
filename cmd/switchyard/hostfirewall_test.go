package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// TestHostFirewall: on a host whose firewall drops what nobody accepts, as with
// Docker and ufw, NodePorts and health checks answer, and nothing else does.
// cleanup takes the opening back.
func TestHostFirewall(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		s := newSite(t, backend, []any{serviceCIDR()})
		for _, command := range []string{"iptables-nft", "ip6tables-nft"} {
			for _, chain := range []string{"FORWARD", "INPUT"} {
				if out, err := s.shell(command + " -P " + chain + " DROP"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		}
		s.writeChecked(s.node.Pods[0])
		s.eventually("the NodePort of web", s.asks(netlab.Request{Protocol: netlab.TCP, To: s.webNodePort()}), true)
		s.eventually("its health check", s.connects(31999), true)
		if answered := s.connects(podPort)(); answered {
			t.Error("a server of the node answers, that nobody let through")
		}
		if status, _, err := (inspect.Client{Socket: s.socket}).Status(t.Context()); err != nil || backend != "iptables" && (status.Firewall == nil || len(status.Firewall.KeptOpen) == 0) {
			t.Errorf("status says of the firewall %+v, %v", status.Firewall, err)
		}
		s.stop()
		cleanup := s.command("cleanup", "--backend="+backend)
		if err := s.node.Start(cleanup); err != nil {
			t.Fatal(err)
		}
		if err := cleanup.Wait(); err != nil {
			t.Fatalf("cleanup: %v", err)
		}
		if out, err := s.shell("iptables-nft-save; ip6tables-nft-save"); err != nil || strings.Contains(out, "SWITCHYARD") {
			t.Errorf("cleanup has left, or %v:\n%s", err, out)
		}
	})
}

// writeChecked is writeWeb and a Service that has a health check.
func (s *site) writeChecked(pod *netlab.Host) {
	s.t.Helper()
	s.writeWeb(pod, &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "checked"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.2", HealthCheckNodePort: 31999,
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			Ports:                 []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30090}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "10.97.0.2"}}}},
	})
}

// asks tells whether a client from outside is answered.
func (s *site) asks(r netlab.Request) func() bool {
	return func() bool {
		a, err := s.lab.Clients[0].Ask(r)
		return err == nil && a.Outcome == netlab.Answered
	}
}

// connects tells whether a client from outside can connect to a port of the node.
func (s *site) connects(port int) func() bool {
	return func() bool {
		_, err := s.lab.Clients[0].Run(s.t.Context(), "timeout", "1", "bash", "-c", fmt.Sprintf("</dev/tcp/%s/%d", s.node.Addrs[0], port))
		return err == nil
	}
}

// eventually waits until what is so.
func (s *site) eventually(name string, what func() bool, want bool) {
	s.t.Helper()
	for deadline := time.Now().Add(netlab.Patient(40 * time.Second)); what() != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: answered should be %t", name, want)
		}
	}
}

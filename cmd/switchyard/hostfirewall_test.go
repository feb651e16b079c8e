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
		eventually(t, "the NodePort of web", s.asks(netlab.Request{Protocol: netlab.TCP, To: s.webNodePort()}))
		eventually(t, "its health check", s.connects(31999))
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

// TestHostFirewallReload: another program replaces iptables' rules while the agent
// runs. The opening is back within seconds, however those rules drop the rest.
func TestHostFirewallReload(t *testing.T) {
	const policy = "iptables-%[1]s -F; iptables-%[1]s -X; iptables-%[1]s -A INPUT -i lo -j ACCEPT; iptables-%[1]s -P FORWARD %[2]s; "
	for _, c := range []struct{ name, rules string }{
		{"a policy", fmt.Sprintf(policy, "nft", "DROP")},
		{"a chain that logs and drops", fmt.Sprintf(policy, "nft", "ACCEPT") + "iptables-nft -N LOGDROP; iptables-nft -A LOGDROP -j DROP; iptables-nft -A FORWARD -j LOGDROP"},
		{"legacy", fmt.Sprintf(policy, "legacy", "DROP")},
		{"rules that iptables does not understand", "nft 'flush ruleset; table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }; }; }'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "nftables", []any{serviceCIDR()})
			s.writeWeb(s.node.Pods[0])
			answers := s.asks(netlab.Request{Protocol: netlab.TCP, To: s.webNodePort(), Timeout: time.Second})
			eventually(t, "the NodePort of web", answers)
			for range 2 {
				if out, err := s.shell(c.rules); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				begin := time.Now()
				eventually(t, "the NodePort of web after the reload", answers)
				if took := time.Since(begin); took > netlab.Patient(8*time.Second) {
					t.Errorf("no answer for %v", took)
				}
			}
		})
	}
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

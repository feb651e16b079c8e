package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// TestTakeOver changes the backend of a node by the flag, from each to each other,
// while connections begin and go on: none fails, none ends, and what was there
// before goes when those that it began are over.
func TestTakeOver(t *testing.T) {
	drivers := catalog.Drivers(config.Default().Backends())
	for _, from := range drivers {
		for _, to := range drivers {
			if from.Name == to.Name || (*onBackend != "" && *onBackend != from.Name && *onBackend != to.Name) {
				continue
			}
			t.Run(from.Name+" to "+to.Name, func(t *testing.T) {
				t.Parallel()
				needs(t, from)
				needs(t, to)
				takeOver(t, from, to)
			})
		}
	}
}

// drainTime is more than a backend waits for connections that have ended: IPVS has
// them in TIME_WAIT for two minutes.
const drainTime = 4 * time.Minute

func takeOver(t *testing.T, fromDriver, toDriver dataplane.Driver) {
	from, to := fromDriver.Name, toDriver.Name
	every := netlab.Patient(20 * time.Millisecond)
	s := newSite(t, from, []any{serviceCIDR()})
	s.writeRemote(s.lab.Nodes[1].Pods[0])
	var begin, held []flow
	clients := []*netlab.Host{s.lab.Clients[0], s.node.Pods[1]}
	if from != "ipvs" || to != "ebpf" { // else the node's own may meet a port that IPVS knows (dataplane/ebpf/README.md)
		clients = append(clients, s.node.Host)
	}
	for _, client := range clients {
		for i, clusterIP := range []string{"10.96.0.1", "fd96::1"} {
			for _, protocol := range []string{netlab.TCP, netlab.UDP} {
				request := netlab.Request{Protocol: protocol, To: netip.AddrPortFrom(netip.MustParseAddr(clusterIP), 80), Timeout: netlab.Patient(5 * time.Second)}
				if client == s.lab.Clients[0] {
					request.To = netip.AddrPortFrom(s.node.Addrs[i], 30080)
				}
				name := fmt.Sprintf("%s from %s to %s", protocol, client.Name, request.To)
				begin = append(begin, flow{"new " + name, false, started(t)(client.Load(request, 1, every))})
				held = append(held, flow{"held " + name, protocol == netlab.UDP, started(t)(client.Hold(request, every))})
			}
		}
	}
	time.Sleep(netlab.Patient(500 * time.Millisecond))
	s.stop()
	s.start(to, "--take-over")
	time.Sleep(netlab.Patient(5 * time.Second)) // longer than UDP's flows through IPVS go on
	stop(t, 0, begin...)
	for _, f := range held {
		most := 0
		if from == "ipvs" && f.udp {
			most = 1 // as the flow begins anew, conntrack forgets the way back of an answer under way
		}
		stop(t, most, f)
	}
	for deadline := time.Now().Add(drainTime); ; time.Sleep(time.Second) {
		left := ""
		for _, layer := range layersOn(fromDriver) {
			if !slices.Contains(layersOn(toDriver), layer) {
				left += s.left(layer)
			}
		}
		if left == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s after the connections have ended there is still: %s", drainTime, left)
		}
	}
	s.asksLocalhost(t)
}

// asksLocalhost: what the old backend took with it, a sysctl, the new one puts back
// at once (KUBE-PROXY §1.10), and not at its next audit, a minute later.
func (s *site) asksLocalhost(t *testing.T) {
	t.Helper()
	request := netlab.Request{Protocol: netlab.TCP, To: netip.MustParseAddrPort("127.0.0.1:30080"), Timeout: netlab.Patient(5 * time.Second)}
	for deadline := time.Now().Add(netlab.Patient(5 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
		a, err := s.node.Ask(request)
		if err == nil && a.Outcome == netlab.Answered {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the NodePort on localhost: %s, %v", a, err)
		}
	}
}

// flow is traffic by name.
type flow struct {
	name string
	udp  bool
	load *netlab.Load
}

func started(t *testing.T) func(*netlab.Load, error) *netlab.Load {
	return func(l *netlab.Load, err error) *netlab.Load {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

// stop ends flows of which each may lose so many requests.
func stop(t *testing.T, most int, flows ...flow) {
	t.Helper()
	for _, f := range flows {
		if sum, err := f.load.Stop(); err != nil || sum.Failed > most {
			t.Errorf("%s: %s, %v", f.name, sum, err)
		}
	}
}

// layersOn are what a backend consists of where its most preferred layers work.
func layersOn(d dataplane.Driver) []string {
	if len(d.Layers) == 0 {
		return []string{d.Name}
	}
	return d.Layers[:2] // sockets, and the first packet backend
}

// left is what a layer of a backend has in the node's kernel; "": nothing.
func (s *site) left(layer string) string {
	s.t.Helper()
	if layer == "sockets" {
		if entries, err := os.ReadDir(s.node.PinDir); err == nil {
			return fmt.Sprint(entries)
		}
		return ""
	}
	out, err := s.shell(map[string]string{
		"iptables": "for c in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $c-save | grep -m1 SWITCHYARD; done; true",
		"ipvs":     "cat /proc/net/ip_vs | tail -n +4; /sbin/ip route show table local proto 83; nft list tables | grep switchyard-ipvs; true",
	}[layer])
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// writeRemote makes a pod of another node all of Service shop/web: TCP and UDP, in
// both families, with a NodePort.
func (s *site) writeRemote(pod *netlab.Host) {
	s.t.Helper()
	objects := []any{serviceCIDR(), s.nodeObject()}
	families := []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd96::1"}, IPFamilies: families},
	}
	name := func(p corev1.Protocol) string { return strings.ToLower(string(p)) }
	var ports []discoveryv1.EndpointPort
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: name(p), Port: 80, NodePort: 30080, Protocol: p})
		ports = append(ports, discoveryv1.EndpointPort{Name: new(name(p)), Port: new(int32(podPort)), Protocol: &p})
	}
	objects = append(objects, service)
	for i, f := range families {
		objects = append(objects, &discoveryv1.EndpointSlice{
			TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-" + strings.ToLower(string(f)), Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressType(f), Ports: ports,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{pod.Addrs[i].String()}, NodeName: new(s.lab.Nodes[1].Name)}},
		})
	}
	s.write(objects...)
	s.waitFor(1)
}

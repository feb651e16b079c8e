package inspect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
)

// translator translates sockets of one pod.
type translator struct{ mode string }

var translatedPod = netip.MustParseAddr("10.40.1.7")

// Sockets implements dataplane.SocketTranslator.
func (t translator) Sockets() *dataplane.Sockets {
	if t.mode == "" {
		return nil
	}
	return &dataplane.Sockets{
		Mode: t.mode, Base: "nftables", LeftPorts: map[string]int{"protocol": 2}, Namespaces: 3,
		LeftNamespaces: map[string]int{"nat rules in OUTPUT (nftables)": 1}, Draining: "4 connections",
	}
}

// SocketsOf implements dataplane.SocketTranslator.
func (translator) SocketsOf(a netip.Addr) dataplane.SocketWay {
	if a == translatedPod {
		return dataplane.SocketWay{AtSocket: true, Why: "nothing is in the way"}
	}
	return dataplane.SocketWay{Why: "a mesh"}
}

// TestWay: which way a client's connections take is said with the reason.
func TestWay(t *testing.T) {
	node := &dataplane.Node{Bound: []netip.Prefix{netip.MustParsePrefix("10.96.0.10/32")}}
	cluster := dataplane.Frontend{Kind: dataplane.ClusterIP, Addr: netip.MustParseAddrPort("10.96.0.1:80")}
	ranged, bound := cluster, cluster
	ranged.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	bound.Addr = netip.MustParseAddrPort("10.96.0.10:53")
	pod, other := client{pod: true, from: translatedPod}, client{pod: true, from: netip.MustParseAddr("10.40.1.8")}
	for _, c := range []struct {
		name     string
		mode     string
		protocol dataplane.Protocol
		frontend dataplane.Frontend
		client   client
		atSocket bool
		why      string
	}{
		{"no sockets are translated", "", dataplane.TCP, cluster, pod, false, ""},
		{"a client outside", "auto", dataplane.TCP, cluster, client{}, false, ""},
		{"the node", "auto", dataplane.TCP, cluster, client{node: true}, true, "its socket is translated"},
		{"a pod that is translated", "auto", dataplane.TCP, cluster, pod, true, "nothing is in the way"},
		{"a pod that is left", "auto", dataplane.TCP, cluster, other, false, "by nftables: a mesh"},
		{"any pod", "auto", dataplane.TCP, cluster, client{pod: true}, true, "--from"},
		{"any pod where pods are left", "node", dataplane.TCP, cluster, client{pod: true}, false, "--socket-lb=node"},
		{"UDP", "auto", dataplane.UDP, cluster, pod, false, "a UDP socket that is connected"},
		{"SCTP", "auto", dataplane.SCTP, cluster, pod, false, "SCTP"},
		{"source ranges", "auto", dataplane.TCP, ranged, pod, false, "client's address"},
		{"an address of the node", "auto", dataplane.TCP, bound, pod, false, "the node's own"},
	} {
		i := &Inspector{Sockets: translator{c.mode}}
		q := question{protocol: c.protocol, frontend: c.frontend, around: watcher.Around{Snapshot: &dataplane.Snapshot{Node: node}}}
		if at, why := i.way(q, c.client); at != c.atSocket || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
			t.Errorf("%s: at the socket %t, %q; want %t, %q", c.name, at, why, c.atSocket, c.why)
		}
	}
	if at, why := (&Inspector{}).way(question{}, pod); at || why != "" {
		t.Errorf("without a translator: %t, %q", at, why)
	}
	text := strings.Join((&Inspector{Sockets: translator{"auto"}}).sockets().Lines(), "\n")
	for _, words := range []string{"on top of nftables (--socket-lb=auto)", "translated: 3", "left to nftables: 1 (nat rules", "left to nftables: 2 (protocol)", "4 connections"} {
		if !strings.Contains(text, words) {
			t.Errorf("status does not say %q:\n%s", words, text)
		}
	}
}

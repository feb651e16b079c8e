package iptables

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

var update = flag.Bool("update", false, "write testdata anew")

// TestRules compares all rules of small sets of Services with testdata: what
// the README describes, in full. `go test -update` writes them anew.
func TestRules(t *testing.T) {
	a := endpoint("10.1.0.5:8080", true)
	b := endpoint("10.1.1.6:8080", false)
	c := endpoint("10.1.2.7:8080", false)
	both := pool(a, b)
	cases := []struct {
		name string
		pods dataplane.LocalPods
		port *dataplane.ServicePort
	}{
		{"clusterip", byCIDR(), port("shop/web:http", dataplane.TCP, frontend(dataplane.ClusterIP, "10.96.0.10:80", pool(a, b, c), dataplane.SNATNonPods))},
		{"no-endpoints", byCIDR(), port("shop/web:http", dataplane.UDP, frontend(dataplane.ClusterIP, "10.96.0.10:80", &dataplane.Pool{}, dataplane.SNATNonPods))},
		{"none-on-this-node", byCIDR(), port("shop/web", dataplane.SCTP, frontend(dataplane.ClusterIP, "10.96.0.10:80", &dataplane.Pool{IfEmpty: dataplane.Drop}, dataplane.SNATNonPods))},
		{"nodeport", dataplane.LocalPods{InterfacePrefix: "veth"}, port("shop/web:http", dataplane.TCP,
			frontend(dataplane.ClusterIP, "10.96.0.10:80", both, dataplane.SNATNonPods),
			frontend(dataplane.NodePort, "0.0.0.0:30080", both, dataplane.SNATAll))},
		{"external-local", byCIDR(), port("shop/web:http", dataplane.TCP,
			frontend(dataplane.ClusterIP, "10.96.0.10:80", both, dataplane.SNATNonPods),
			inside(both, frontend(dataplane.LoadBalancer, "203.0.113.7:80", pool(a), dataplane.SNATNode)),
			inside(both, frontend(dataplane.NodePort, "0.0.0.0:30080", pool(a), dataplane.SNATNode)))},
		{"external-local-all-here", byCIDR(), port("shop/web:http", dataplane.TCP, // one pool for all frontends
			frontend(dataplane.ClusterIP, "10.96.0.10:80", both, dataplane.SNATNonPods),
			frontend(dataplane.NodePort, "0.0.0.0:30080", both, dataplane.SNATNode))},
		{"source-ranges", byCIDR(), port("shop/web:http", dataplane.TCP,
			frontend(dataplane.ClusterIP, "10.96.0.10:80", both, dataplane.SNATNonPods),
			sources(frontend(dataplane.LoadBalancer, "203.0.113.7:80", both, dataplane.SNATAll), "198.51.100.0/24", "203.0.113.7/32"))},
		{"affinity", byCIDR(), affine(port("shop/web:http", dataplane.TCP, frontend(dataplane.ClusterIP, "10.96.0.10:80", both, dataplane.SNATNonPods)), 3*time.Hour)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := snapshot(c.port)
			s.Node = &dataplane.Node{NodePorts: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")}, LocalPods: c.pods}
			golden(t, c.name, string(fullText(s, dataplane.IPv4)))
		})
	}
}

// TestRules6 is the same for a dual-stack Service's IPv6 port.
func TestRules6(t *testing.T) {
	p := port("shop/web:http", dataplane.TCP)
	p.ID.Family = dataplane.IPv6
	p.Frontends = []dataplane.Frontend{frontend(dataplane.ClusterIP, "[fd00:96::a]:80", pool(endpoint("[fd00:1::5]:8080", true), endpoint("[fd00:2::6]:8080", false)), dataplane.SNATNonPods)}
	golden(t, "ipv6", string(fullText(snapshot(affine(p, time.Minute)), dataplane.IPv6)))
}

func golden(t *testing.T, name, have string) {
	t.Helper()
	path := filepath.Join("testdata", name+".rules")
	if *update {
		if err := os.WriteFile(path, []byte(have), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if have != string(want) {
		t.Errorf("not as in %s:\n%s", path, have)
	}
}

// TestNames demands names that the kernel takes, of chains for every kind of key.
func TestNames(t *testing.T) {
	v4 := layout{root: chainFrontends, prefix: prefixFrontend, flag: "-d", addr: addrDigits(dataplane.IPv4)}
	v6 := layout{root: chainFrontends, prefix: prefixFrontend, flag: "-d", addr: addrDigits(dataplane.IPv6)}
	ports := layout{root: chainNodePorts, prefix: prefixNodePort}
	a4, a6 := netip.MustParseAddr("10.96.17.255"), netip.MustParseAddr("fd00:96::1234")
	cases := []struct {
		layout      layout
		key         string
		name, match string // match: the rule that leads there from the root
	}{
		{v4, "", "SWITCHYARD-FRONTENDS", ""},
		{v4, addrKey(a4)[:7], "SY-F-10.96.0.0-14", "-d 10.96.0.0/14"},
		{v4, addrKey(a4), "SY-F-10.96.17.255", "-d 10.96.17.255/32"},
		{v4, addrKey(a4) + portKey(dataplane.TCP, 80)[:1], "SY-F-10.96.17.255-tcp", "-d 10.96.17.255/32 -p tcp"},
		{v4, addrKey(a4) + portKey(dataplane.SCTP, 30080)[:3], "SY-F-", "-d 10.96.17.255/32 -p sctp -m sctp --dport 28672:32767"},
		{v4, addrKey(a4) + portKey(dataplane.UDP, 53), "SY-F-10.96.17.255-udp-53", "-d 10.96.17.255/32 -p udp -m udp --dport 53"},
		{v6, addrKey(a6)[:60], "SY-F-fd00:96::1200-120", "-d fd00:96::1200/120"},
		{ports, portKey(dataplane.UDP, 30080)[:5], "SY-N-udp-30080-30207"[:9] + "29952:30207", "-p udp -m udp --dport 29952:30207"},
	}
	for _, c := range cases {
		name := c.layout.chain(c.key)
		if !strings.HasPrefix(name, c.name) || len(name) > maxChainName || !isOwn(name) {
			t.Errorf("chain(%x) = %q, want %q and at most %d characters", c.key, name, c.name, maxChainName)
		}
		if m := string(c.layout.match(nil, 0, c.key)); c.key != "" && m != " "+c.match {
			t.Errorf("match(%x) = %q, want %q", c.key, m, c.match)
		}
	}
	for _, foreign := range []string{"KUBE-SERVICES", "SY-", "SY-X", "SYSTEM", "SY-p-x", "SWITCHYARD"} {
		if isOwn(foreign) {
			t.Errorf("isOwn(%q) is true", foreign)
		}
	}
}

// TestPoolMasquerade lists whom a pool's own chain masquerades, given the
// frontends that lead to it.
func TestPoolMasquerade(t *testing.T) {
	local, cluster := pool(endpoint("10.1.0.5:8080", true)), pool(endpoint("10.1.0.5:8080", true), endpoint("10.1.1.6:8080", false))
	cases := []struct {
		name             string
		frontends        []dataplane.Frontend
		cluster, choices dataplane.SNAT // of the cluster pool's chain; number of choice chains
	}{
		{"one frontend", []dataplane.Frontend{frontend(dataplane.ClusterIP, "10.96.0.1:80", cluster, dataplane.SNATAll)}, dataplane.SNATAll, 0},
		{"the least of two, the other has a choice", []dataplane.Frontend{
			frontend(dataplane.ClusterIP, "10.96.0.1:80", cluster, dataplane.SNATNonPods),
			frontend(dataplane.ExternalIP, "203.0.113.1:80", cluster, dataplane.SNATAll)}, dataplane.SNATNonPods, 1},
		{"for node and pods, the node is all but pods", []dataplane.Frontend{
			frontend(dataplane.ClusterIP, "10.96.0.1:80", cluster, dataplane.SNATNonPods),
			inside(cluster, frontend(dataplane.ExternalIP, "203.0.113.1:80", local, dataplane.SNATNode))}, dataplane.SNATNonPods, 1},
		{"a pool that keeps client addresses", []dataplane.Frontend{
			frontend(dataplane.ClusterIP, "10.96.0.1:80", cluster, dataplane.SNATNonPods),
			frontend(dataplane.ExternalIP, "203.0.113.1:80", cluster, dataplane.SNATNone)}, dataplane.SNATNone, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := port("shop/web", dataplane.TCP, c.frontends...)
			n := testNode(dataplane.IPv4, snapshot(p))
			rules := planFor(p, n)
			i := slices.IndexFunc(rules.chains, func(ch restore.Chain) bool { return strings.Count(ch.Body, "DNAT") == 2 })
			want := n.masquerade(c.cluster)
			if have, _, _ := strings.Cut(rules.chains[i].Body, "-p tcp"); have != want {
				t.Errorf("the pool's chain masquerades by %q, want %q", have, want)
			}
			choices := 0
			for _, ch := range rules.chains {
				if strings.HasPrefix(ch.Name, prefixChoice) {
					choices++
				}
			}
			if choices != int(c.choices) {
				t.Errorf("%d choice chains, want %d", choices, c.choices)
			}
		})
	}
}

func byCIDR() dataplane.LocalPods {
	return dataplane.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}}
}

func endpoint(addr string, local bool) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: netip.MustParseAddrPort(addr), Local: local}
}

func pool(e ...dataplane.Endpoint) *dataplane.Pool { return &dataplane.Pool{Endpoints: e} }

func frontend(k dataplane.Kind, addr string, p *dataplane.Pool, s dataplane.SNAT) dataplane.Frontend {
	return dataplane.Frontend{Kind: k, Addr: netip.MustParseAddrPort(addr), Pool: p, SNAT: s}
}

func inside(p *dataplane.Pool, f dataplane.Frontend) dataplane.Frontend {
	f.Inside = p
	return f
}

func sources(f dataplane.Frontend, ranges ...string) dataplane.Frontend {
	for _, r := range ranges {
		f.Sources = append(f.Sources, netip.MustParsePrefix(r))
	}
	return f
}

// port makes an IPv4 ServicePort; name is "namespace/service:port".
func port(name string, p dataplane.Protocol, f ...dataplane.Frontend) *dataplane.ServicePort {
	namespace, rest, _ := strings.Cut(name, "/")
	service, portName, _ := strings.Cut(rest, ":")
	return &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: namespace, Service: service, Port: portName, Protocol: p, Family: dataplane.IPv4},
		Frontends: f,
	}
}

func affine(p *dataplane.ServicePort, d time.Duration) *dataplane.ServicePort {
	p.Affinity = d
	return p
}

// testNode is what rules depend on, on a node where all works.
func testNode(f dataplane.Family, s *dataplane.Snapshot) *node {
	n := &node{family: f, bit: 1 << 14, randomFully: true, dropInvalid: true}
	if err := n.see(s, true); err != nil {
		panic(err)
	}
	return n
}

// fresh is what a first Sync writes.
func fresh(n *node, s *dataplane.Snapshot) *restore.Writes {
	d := newDiff(nil)
	newHeld(*n).start(additions(s, n.family), d)
	return d.rest()
}

// fullText is what a first Sync gives to iptables-restore.
func fullText(s *dataplane.Snapshot, f dataplane.Family) []byte {
	n := testNode(f, s)
	if f == dataplane.IPv4 {
		n.localnet = localnet.Switched
	}
	w := fresh(n, s)
	for _, table := range []string{restore.Filter, restore.NAT} {
		new(restore.Table).Repair(nil, jumpsOf(table), w.Table(table))
	}
	return w.Text()
}

func TestProbability(t *testing.T) {
	for n, want := range map[int]string{2: "0.50000000000", 3: "0.33333333349", 10: "0.10000000009", 1000: "0.00100000016"} {
		if have := probability(n); have != want {
			t.Errorf("probability(%d) = %s, want %s", n, have, want)
		}
	}
}

func TestInDigits(t *testing.T) {
	for p, want := range map[string]string{
		"192.0.2.1/32":  "192.0.2.1/32",
		"10.77.0.0/24":  "10.77.0.0/24",
		"10.77.0.9/25":  "10.77.0.0/26 10.77.0.64/26",
		"0.0.0.0/0":     "0.0.0.0/2 64.0.0.0/2 128.0.0.0/2 192.0.0.0/2",
		"2001:db8::/63": "2001:db8::/64 2001:db8:0:1::/64",
	} {
		if got := strings.Trim(fmt.Sprint(inDigits(netip.MustParsePrefix(p))), "[]"); got != want {
			t.Errorf("%s: got %s, want %s", p, got, want)
		}
	}
}

package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// TestSteps walks through random Snapshots. After each step the rules must be,
// chain by chain, those of a fresh start; a packet to each frontend must reach
// its ServicePort, to another port of a ClusterIP what refuses it once nobody can
// translate any more, and elsewhere nothing; and Observe must see what is wanted.
func TestSteps(t *testing.T) {
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				g := newGenerator(t, f)
				prev := &dataplane.Snapshot{Node: &dataplane.Node{}}
				h := newHeld(*testNode(f, prev))
				kernel := kernelTables{restore.NAT: {}, restore.Filter: {}}
				d := newDiff(nil)
				h.start(nil, d)
				kernel.apply(t, d.rest())
				for range rapid.IntRange(1, 8).Draw(t, "steps") {
					want := g.next(prev)
					next := testNode(f, want)
					changes := h.changes(prev.Ports, want.Ports, next)
					if bad := h.vet(changes); len(bad) > 0 {
						t.Fatalf("refused: %v", bad)
					}
					d := newDiff(nil)
					h.apply(changes, *next, d)
					kernel.apply(t, d.rest())
					kernel.mustEqual(t, freshTables(t, f, want))
					checkPackets(t, kernel, f, want)
					checkObserved(t, kernel[restore.NAT], f, want)
					prev = want
				}
			})
		})
	}
}

// kernelTables are chains by table, as a kernel would hold them.
type kernelTables map[string]map[string]string

// apply does what iptables-restore does, and as strictly.
func (k kernelTables) apply(t *rapid.T, w *restore.Writes) {
	for table, writes := range w.Tables {
		for _, c := range writes.Write {
			if _, have := k[table][c.Name]; have == c.Fresh && c.Rank > rankFixed && c.Rank < rankHook {
				t.Fatalf("chain %s: fresh is %v, in the kernel %v", c.Name, c.Fresh, have)
			}
			k[table][c.Name] = c.Body
		}
	}
	for table, writes := range w.Tables {
		for _, name := range writes.Remove {
			if _, have := k[table][name]; !have {
				t.Fatalf("removes chain %s, which is not there", name)
			}
			delete(k[table], name)
		}
	}
	for table, chains := range k {
		for name, body := range chains {
			for line := range strings.Lines(body) {
				if to := restore.TargetOf(strings.TrimSpace(line)); isOwn(to) {
					if _, have := chains[to]; !have {
						t.Fatalf("%s: chain %s leads to %s, which is not there", table, name, to)
					}
				}
			}
		}
	}
}

func (k kernelTables) mustEqual(t *rapid.T, want kernelTables) {
	for table := range want {
		for name := range mergedKeys(k[table], want[table]) {
			have, is := k[table][name]
			if w, wanted := want[table][name]; have != w || is != wanted {
				t.Fatalf("%s, chain %s: after the step\n%v %s\nfresh\n%v %s", table, name, is, have, wanted, w)
			}
		}
	}
}

func mergedKeys(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func freshTables(t *rapid.T, f dataplane.Family, s *dataplane.Snapshot) kernelTables {
	k := kernelTables{restore.NAT: {}, restore.Filter: {}}
	k.apply(t, fresh(testNode(f, s), s))
	return k
}

// generator draws Snapshots that differ a little from one another.
type generator struct {
	t      *rapid.T
	family dataplane.Family
}

func newGenerator(t *rapid.T, f dataplane.Family) *generator { return &generator{t: t, family: f} }

func (g *generator) next(held *dataplane.Snapshot) *dataplane.Snapshot {
	want := *held
	if rapid.IntRange(0, 3).Draw(g.t, "node") == 0 || held.Node.Name == "" {
		n := &dataplane.Node{Name: "n"}
		for i := range rapid.IntRange(0, 3).Draw(g.t, "addresses") {
			n.NodePorts = append(n.NodePorts, whole(g.address(200, i)))
		}
		if bits := rapid.IntRange(0, 10).Draw(g.t, "prefix"); bits > 0 { // a local route
			a := g.address(200, 0)
			n.NodePorts = append(n.NodePorts, netip.PrefixFrom(a, a.BitLen()-bits).Masked())
		}
		n.NodePorts = append(n.NodePorts, netip.MustParsePrefix("127.0.0.0/8"))
		switch rapid.IntRange(0, 2).Draw(g.t, "pods") {
		case 0:
			n.LocalPods.CIDRs = []netip.Prefix{netip.PrefixFrom(g.address(1, 0), g.address(1, 0).BitLen()-8)}
		case 1:
			n.LocalPods.InterfacePrefix = "veth"
		}
		want.Node = n
		want.ServiceCIDRs = nil
		if rapid.Bool().Draw(g.t, "ranges") {
			want.ServiceCIDRs = []netip.Prefix{netip.PrefixFrom(g.address(96, 0), g.address(96, 0).BitLen()-16).Masked()}
		}
	}
	var put []*dataplane.ServicePort
	var remove []dataplane.PortID
	for range rapid.SampledFrom([]int{0, 1, 3, 40}).Draw(g.t, "changes") {
		p := g.port(rapid.IntRange(0, 59).Draw(g.t, "service"))
		if rapid.IntRange(0, 3).Draw(g.t, "remove") == 0 {
			remove = append(remove, p.ID)
		} else {
			put = append(put, p)
		}
	}
	want.Ports = held.Ports.With(put, remove)
	return &want
}

// port draws the i-th ServicePort. Two share a ClusterIP, and many are in one
// node of a tree.
func (g *generator) port(i int) *dataplane.ServicePort {
	protocol := rapid.SampledFrom([]dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}).Draw(g.t, "protocol")
	pools := []*dataplane.Pool{g.pool(), g.pool()}
	draw := func(k dataplane.Kind, a netip.AddrPort) dataplane.Frontend {
		f := dataplane.Frontend{Kind: k, Addr: a, Pool: rapid.SampledFrom(pools).Draw(g.t, "pool"), SNAT: dataplane.SNAT(rapid.IntRange(0, 3).Draw(g.t, "snat"))}
		if rapid.Bool().Draw(g.t, "inside") {
			f.Inside = pools[1]
		}
		if rapid.IntRange(0, 4).Draw(g.t, "ranges") == 0 {
			f.Sources = []netip.Prefix{whole(g.address(7, i)), netip.PrefixFrom(g.address(8, 0), 8).Masked()}
		}
		return f
	}
	p := &dataplane.ServicePort{ID: dataplane.PortID{Namespace: "ns", Service: fmt.Sprint("s", i/2), Port: fmt.Sprint("p", i), Protocol: protocol, Family: g.family}}
	p.Frontends = append(p.Frontends, draw(dataplane.ClusterIP, netip.AddrPortFrom(g.address(96, i/2), uint16(80+i))))
	if rapid.Bool().Draw(g.t, "external") { // one address for all: the tree goes on over ports
		p.Frontends = append(p.Frontends, draw(dataplane.ExternalIP, netip.AddrPortFrom(g.address(203, 0), uint16(1000+i))))
	}
	if rapid.Bool().Draw(g.t, "nodePort") {
		p.Frontends = append(p.Frontends, draw(dataplane.NodePort, netip.AddrPortFrom(g.family.Unspecified(), uint16(30000+i))))
	}
	if rapid.IntRange(0, 2).Draw(g.t, "affinity") == 0 {
		p.Affinity = time.Minute
	}
	if rapid.IntRange(0, 3).Draw(g.t, "health") == 0 {
		p.HealthCheck = &dataplane.HealthCheck{Port: uint16(32000 + i/2)}
	}
	return p
}

func (g *generator) pool() *dataplane.Pool {
	p := &dataplane.Pool{IfEmpty: dataplane.Verdict(rapid.IntRange(0, 1).Draw(g.t, "verdict"))}
	for j := range rapid.IntRange(0, 3).Draw(g.t, "endpoints") {
		p.Endpoints = append(p.Endpoints, dataplane.Endpoint{
			Addr:  netip.AddrPortFrom(g.address(1, 10*j+rapid.IntRange(0, 9).Draw(g.t, "endpoint")), 8080),
			Local: rapid.Bool().Draw(g.t, "local"),
		})
	}
	return p
}

// address is the i-th of a kind.
func (g *generator) address(kind byte, i int) netip.Addr {
	if g.family == dataplane.IPv4 {
		return netip.AddrFrom4([4]byte{10, kind, byte(i >> 8), byte(i)})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: kind, 14: byte(i >> 8), 15: byte(i)})
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// packet is a new connection's first packet.
type packet struct {
	dst      netip.Addr
	protocol dataplane.Protocol
	port     uint16
}

// checkPackets sends a packet to every frontend and beside it.
func checkPackets(t *rapid.T, tables kernelTables, f dataplane.Family, s *dataplane.Snapshot) {
	frontends := map[packet]bool{}
	for p := range s.Ports.All() {
		for _, fr := range p.Frontends {
			frontends[packet{fr.Addr.Addr(), p.ID.Protocol, fr.Addr.Port()}] = true
		}
	}
	n := testNode(f, s)
	for p := range s.Ports.All() {
		entries := planFor(p, n).entries
		for i, fr := range p.Frontends {
			want := restore.TargetOf(entries[i].value)
			at := packet{fr.Addr.Addr(), p.ID.Protocol, fr.Addr.Port()}
			if fr.Kind != dataplane.NodePort {
				mustReach(t, tables[restore.NAT], at, want)
			} else {
				for _, a := range n.addresses {
					mustReach(t, tables[restore.NAT], packet{a.Addr(), at.protocol, at.port}, want)
				}
				mustReach(t, tables[restore.NAT], packet{stranger(f), at.protocol, at.port}, "")
			}
			if fr.Kind == dataplane.ClusterIP {
				at.port = 9
				mustReach(t, tables[restore.NAT], at, "")
				if at := trace(t, tables[restore.Filter], at, 0, chainLost); at != chainRefuse {
					t.Fatalf("another port of %s reaches %q, want %q", fr.Addr, at, chainRefuse)
				}
			}
			if at.port++; fr.Kind == dataplane.ExternalIP && !frontends[at] {
				mustReach(t, tables[restore.NAT], at, "")
			}
		}
	}
}

// stranger is an address that is nobody's.
func stranger(f dataplane.Family) netip.Addr {
	if f == dataplane.IPv4 {
		return netip.MustParseAddr("192.0.2.77")
	}
	return netip.MustParseAddr("2001:db8::77")
}

func mustReach(t *rapid.T, nat map[string]string, p packet, want string) {
	if have := trace(t, nat, p, 0, chainMarked); have != want {
		t.Fatalf("packet %v, with a foreign mark, reaches %q, want %q", p, have, want)
	}
	if have := trace(t, nat, p, 0, chainServices); have != want {
		t.Fatalf("packet %v reaches %q, want %q", p, have, want)
	}
}

// trace follows a packet to the first chain that is no part of a tree; "" is
// none. It knows the matches that trees use.
func trace(t *rapid.T, nat map[string]string, p packet, depth int, name string) string {
	if depth > 15 {
		t.Fatalf("packet %v: chain %s is more than 15 steps from the hook, which nft refuses", p, name)
	}
	for line := range strings.Lines(nat[name]) {
		r, err := restore.ParseRule(line)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "-m mark ") || strings.Contains(line, "-m addrtype --dst-type") || r.Target == "MARK" ||
			r.Dst.IsValid() && !r.Dst.Contains(p.dst) || r.Protocol != 0 && r.Protocol != p.protocol || !inPorts(line, p.port) {
			continue
		}
		found := r.Target
		if _, isTree := treeOfChain(r.Target); isTree {
			found = trace(t, nat, p, depth+1, r.Target)
		}
		if found != "" || r.Goto {
			return found
		}
	}
	return ""
}

// treeOfChain tells the chains that are parts of trees.
func treeOfChain(name string) (string, bool) {
	for _, prefix := range []string{chainFrontends, chainNodePorts, chainAddresses, chainVIPs, prefixFrontend, prefixNodePort, prefixAddress, prefixVIP} {
		if strings.HasPrefix(name, prefix) {
			return prefix, true
		}
	}
	return "", false
}

func inPorts(rule string, port uint16) bool {
	_, ports, ok := strings.Cut(rule, "--dport ")
	if !ok {
		return true
	}
	var first, last uint16
	if n, _ := fmt.Sscanf(ports, "%d:%d", &first, &last); n == 1 {
		last = first
	}
	return first <= port && port <= last
}

func checkObserved(t *rapid.T, nat map[string]string, f dataplane.Family, s *dataplane.Snapshot) {
	w := walker{family: f, known: map[string]outcome{}, nat: &restore.Table{Chains: nat, Jumps: []restore.ForeignRule{
		{Chain: "PREROUTING", Rule: "-j " + chainServices}, {Chain: "OUTPUT", Rule: "-j " + chainServices}}}}
	if err := w.walk(); err != nil {
		t.Fatal(err)
	}
	have := &dataplane.Observation{Frontends: w.frontends}
	have.Sort()
	if diffs := have.Differences(dataplane.Expect(s)); len(diffs) > 0 {
		t.Fatalf("observed: %s", strings.Join(diffs, "\n"))
	}
}

// TestVet lists what is refused before anything is written.
func TestVet(t *testing.T) {
	p := func(name, addr string) *dataplane.ServicePort {
		return port(name, dataplane.TCP, frontend(dataplane.ClusterIP, addr, pool(endpoint("10.1.0.5:80", false)), dataplane.SNATNone))
	}
	held := p("a/held", "10.96.0.1:80")
	icmp := p("a/icmp", "10.96.0.9:80")
	icmp.ID.Protocol = 1
	cases := []struct {
		name    string
		changes []change
		bad     []string
	}{
		{"a frontend that another has", []change{{new: p("a/new", "10.96.0.1:80")}}, []string{"new"}},
		{"a frontend that another gives up", []change{{new: p("a/new", "10.96.0.1:80")}, {old: held}}, nil},
		{"two at once", []change{{new: p("a/x", "10.96.0.2:80")}, {new: p("a/y", "10.96.0.2:80")}}, []string{"y"}},
		{"an address of the other family", []change{{new: p("a/x", "[fd00::1]:80")}}, []string{"x"}},
		{"a protocol without ports", []change{{new: icmp}}, []string{"icmp"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := *testNode(dataplane.IPv4, snapshot())
			h := newHeld(n)
			h.apply([]change{{new: held}}, n, newDiff(nil))
			var bad []string
			for id := range h.vet(c.changes) {
				bad = append(bad, id.Service)
			}
			if !slices.Equal(bad, c.bad) {
				t.Errorf("refused %v, want %v", bad, c.bad)
			}
		})
	}
}

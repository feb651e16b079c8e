package conntrack

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Names of addresses, by family, so that one table serves both.
var names = map[dataplane.Family]*strings.Replacer{
	dataplane.IPv4: strings.NewReplacer(
		"cluster", "10.96.0.10", "external", "198.51.100.9", "lb", "203.0.113.5",
		"node", "172.18.0.2", "other", "172.18.0.99", "any", "0.0.0.0",
		"podA", "10.244.1.2", "podB", "10.244.2.3", "podX", "10.244.9.9"),
	dataplane.IPv6: strings.NewReplacer(
		"cluster", "[fd00:96::a]", "external", "[2001:db8:1::9]", "lb", "[2001:db8:2::5]",
		"node", "[fd00:18::2]", "other", "[fd00:18::99]", "any", "[::]",
		"podA", "[fd00:244:1::2]", "podB", "[fd00:244:2::3]", "podX", "[fd00:244:9::9]"),
}

func addr(f dataplane.Family, s string) netip.AddrPort {
	return netip.MustParseAddrPort(names[f].Replace(s))
}

func kindOf(s string) dataplane.Kind {
	switch strings.Split(s, ":")[0] {
	case "any":
		return dataplane.NodePort
	case "external":
		return dataplane.ExternalIP
	case "lb":
		return dataplane.LoadBalancer
	}
	return dataplane.ClusterIP
}

// udp makes a ServicePort: "cluster:53 any:30053 > podA:5353 podB:5353".
func udp(f dataplane.Family, name, spec string) *dataplane.ServicePort {
	front, serving, _ := strings.Cut(spec, ">")
	p := &dataplane.ServicePort{ID: dataplane.PortID{Namespace: "ns", Service: name, Protocol: dataplane.UDP, Family: f}}
	pool := &dataplane.Pool{}
	for _, s := range strings.Fields(front) {
		p.Frontends = append(p.Frontends, dataplane.Frontend{Kind: kindOf(s), Addr: addr(f, s), Pool: pool})
	}
	for _, s := range strings.Fields(serving) {
		p.Serving = append(p.Serving, dataplane.Endpoint{Addr: addr(f, s)})
	}
	slices.SortFunc(p.Serving, func(a, b dataplane.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return p
}

func snapshot(f dataplane.Family, nodePorts []string, ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	n := &dataplane.Node{Name: "node"}
	for _, s := range nodePorts {
		a := addr(f, s+":0").Addr()
		n.NodePorts = append(n.NodePorts, netip.PrefixFrom(a, a.BitLen()))
	}
	return &dataplane.Snapshot{Revision: 1, Node: n, Ports: dataplane.MakePorts(ports...)}
}

func eachFamily(t *testing.T, do func(*testing.T, dataplane.Family)) {
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t.Run(f.String(), func(t *testing.T) { do(t, f) })
	}
}

func newCleaner(t *testing.T, f dataplane.Family, passes *[]Pass) *Cleaner {
	c := New(slog.New(slog.DiscardHandler), f)
	c.Report = func(p Pass) {
		if p.Err != nil {
			t.Errorf("pass: %v", p.Err)
		}
		*passes = append(*passes, p)
	}
	return c
}

// Which entries of the kernel's table end and which stay, at the first Snapshot
// and after a change.
func TestWhichFlowsEnd(t *testing.T) {
	const (
		dns  = "cluster:53 external:53 lb:53 any:30053 > podA:5353 podB:5353"
		idle = "cluster:54 any:30054"
		gone = "cluster:55 external:55 any:30055 > podA:5353"
	)
	cases := []struct {
		protocol   dataplane.Protocol
		dst, reply string
		ends       bool
		why        string
	}{
		{dataplane.UDP, "cluster:53", "podA:5353", false, "a serving endpoint"},
		{dataplane.UDP, "cluster:53", "podX:5353", true, "no endpoint of it"},
		{dataplane.UDP, "cluster:53", "podA:5354", true, "an endpoint's address, another port"},
		{dataplane.UDP, "cluster:53", "cluster:53", true, "no NAT: began before there were endpoints"},
		{dataplane.UDP, "external:53", "podX:5353", true, "external IPs too"},
		{dataplane.UDP, "external:53", "podB:5353", false, "external IP, serving"},
		{dataplane.UDP, "lb:53", "podX:5353", true, "load balancer addresses too"},
		{dataplane.UDP, "node:30053", "podX:5353", true, "NodePorts too"},
		{dataplane.UDP, "node:30053", "podB:5353", false, "NodePort, serving"},
		{dataplane.UDP, "node:30053", "node:30053", true, "NodePort, no NAT"},
		{dataplane.UDP, "other:30053", "podX:5353", false, "a NodePort's number at an address that is not ours"},
		{dataplane.UDP, "other:30053", "other:30053", false, "the same, on the way through"},
		{dataplane.UDP, "cluster:54", "podA:5353", true, "a Service without endpoints"},
		{dataplane.UDP, "node:30054", "podA:5353", true, "a NodePort without endpoints"},
		{dataplane.UDP, "cluster:56", "podX:5353", false, "our address, a port that was never ours"},
		{dataplane.UDP, "podX:5353", "podX:5353", false, "straight to a pod that is gone: not through a Service"},
		{dataplane.UDP, "other:53", "other:53", false, "a stranger's flow"},
		{dataplane.TCP, "cluster:53", "podX:5353", false, "TCP is never touched"},
		{dataplane.SCTP, "cluster:53", "podX:5353", false, "SCTP is never touched"},
		{dataplane.UDP, "cluster:55", "podA:5353", true, "the Service was deleted"},
		{dataplane.UDP, "external:55", "podA:5353", true, "the Service was deleted, external IP"},
		{dataplane.UDP, "node:30055", "podA:5353", true, "the Service was deleted, NodePort"},
		{dataplane.UDP, "node:30055", "node:30055", false, "a former NodePort, without NAT: the node's own"},
		{dataplane.UDP, "other:30055", "podA:5353", false, "a former NodePort's number elsewhere"},
	}
	eachFamily(t, func(t *testing.T, f dataplane.Family) {
		enterNetns(t)
		var passes []Pass
		c := newCleaner(t, f, &passes)
		before := snapshot(f, []string{"node"}, udp(f, "dns", dns), udp(f, "idle", idle), udp(f, "gone", gone))
		c.Synced(before)
		c.step(t.Context()) // nothing is in the table yet

		ends := 0
		for i, tc := range cases {
			entry{tc.protocol, addr(f, tc.dst), addr(f, tc.reply)}.insert(t, byte(i+1))
			if tc.ends {
				ends++
			}
		}
		after := *before
		after.Ports = before.Ports.With(nil, []dataplane.PortID{udp(f, "gone", gone).ID})
		c.Synced(&after)
		c.step(t.Context())

		left := clients(t, f)
		for i, tc := range cases {
			if ended := !left[byte(i+1)]; ended != tc.ends {
				t.Errorf("%s to %s, answered by %s (%s): ended %v, want %v", tc.protocol, tc.dst, tc.reply, tc.why, ended, tc.ends)
			}
		}
		if len(passes) != 2 || passes[1].Deleted != ends || passes[1].Family != f {
			t.Errorf("passes %+v, want two and the second with %d deleted", passes, ends)
		}
	})
}

// What is in the table before the agent's first Snapshot is checked as well.
func TestFirstSnapshotChecksAll(t *testing.T) {
	eachFamily(t, func(t *testing.T, f dataplane.Family) {
		enterNetns(t)
		entry{dataplane.UDP, addr(f, "cluster:53"), addr(f, "podX:53")}.insert(t, 1)
		entry{dataplane.UDP, addr(f, "cluster:53"), addr(f, "podA:53")}.insert(t, 2)
		var passes []Pass
		c := newCleaner(t, f, &passes)
		c.Synced(snapshot(f, nil, udp(f, "dns", "cluster:53 > podA:53")))
		c.step(t.Context())
		if left := clients(t, f); left[1] || !left[2] {
			t.Errorf("left %v, want just the flow to the serving endpoint", left)
		}
	})
}

// A pass reads a whole table, so it happens only where entries may be stale.
func TestWhenAPassIsDue(t *testing.T) {
	const v4 = dataplane.IPv4
	one := func(spec string) []*dataplane.ServicePort { return []*dataplane.ServicePort{udp(v4, "a", spec)} }
	tcp := func(spec string) []*dataplane.ServicePort {
		p := udp(v4, "a", spec)
		p.ID.Protocol = dataplane.TCP
		return []*dataplane.ServicePort{p}
	}
	cases := []struct {
		name         string
		before, then []*dataplane.ServicePort
		due          bool
	}{
		{"nothing changes", one("cluster:53 > podA:53"), one("cluster:53 > podA:53"), false},
		{"an endpoint joins others", one("cluster:53 > podA:53"), one("cluster:53 > podA:53 podB:53"), false},
		{"the first endpoint comes", one("cluster:53"), one("cluster:53 > podA:53"), true},
		{"an endpoint goes", one("cluster:53 > podA:53 podB:53"), one("cluster:53 > podA:53"), true},
		{"the last endpoint goes", one("cluster:53 > podA:53"), one("cluster:53"), true},
		{"an endpoint is replaced", one("cluster:53 > podA:53"), one("cluster:53 > podB:53"), true},
		{"a Service comes", nil, one("cluster:53 > podA:53"), true},
		{"a Service goes", one("cluster:53 > podA:53"), nil, true},
		{"a frontend comes", one("cluster:53 > podA:53"), one("cluster:53 any:30053 > podA:53"), true},
		{"a frontend goes", one("cluster:53 any:30053 > podA:53"), one("cluster:53 > podA:53"), true},
		{"TCP changes", tcp("cluster:53 > podA:53"), tcp("cluster:53 > podB:53"), false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := New(slog.New(slog.DiscardHandler), v4)
			c.learn(snapshot(v4, []string{"node"}, tc.before...))
			c.indexes[0].due = false
			c.learn(snapshot(v4, []string{"node"}, tc.then...))
			if due := c.indexes[0].due; due != tc.due {
				t.Errorf("due %v, want %v", due, tc.due)
			}
		})
	}
	t.Run("a node address comes", func(t *testing.T) {
		c := New(slog.New(slog.DiscardHandler), v4)
		ports := one("any:30053 > podA:53")
		c.learn(snapshot(v4, []string{"node"}, ports...))
		c.indexes[0].due = false
		c.learn(snapshot(v4, []string{"node", "other"}, ports...))
		if !c.indexes[0].due {
			t.Error("not due: flows to the new address from before would stay")
		}
	})
}

// A frontend that moves between Services belongs to the new one, whichever of
// the two changes is seen first, and flows to its endpoints stay.
func TestFrontendMoves(t *testing.T) {
	for _, tc := range []struct{ from, to string }{{"a", "b"}, {"b", "a"}} {
		t.Run(tc.from+" to "+tc.to, func(t *testing.T) {
			const f = dataplane.IPv4
			const spec = "external:53 any:30053 > "
			c := New(slog.New(slog.DiscardHandler), f)
			c.learn(snapshot(f, []string{"node"}, udp(f, tc.from, spec+"podA:53")))
			c.learn(snapshot(f, []string{"node"}, udp(f, tc.to, spec+"podB:53")))
			for _, dst := range []string{"external:53", "node:30053"} {
				for reply, want := range map[string]bool{"podA:53": true, "podB:53": false} {
					if got := c.indexes[0].stale(flow{dst: addr(f, dst), replySrc: addr(f, reply)}); got != want {
						t.Errorf("%s answered by %s: stale %v, want %v", dst, reply, got, want)
					}
				}
			}
		})
	}
}

// Synced never blocks, and after a burst the newest Snapshot is what counts.
func TestRunTakesTheNewest(t *testing.T) {
	const f = dataplane.IPv4
	enterNetns(t)
	entry{dataplane.UDP, addr(f, "cluster:53"), addr(f, "podA:53")}.insert(t, 1)
	entry{dataplane.UDP, addr(f, "cluster:53"), addr(f, "podB:53")}.insert(t, 2)
	var passes []Pass
	c := newCleaner(t, f, &passes)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	for i := range 1000 {
		c.Synced(snapshot(f, nil, udp(f, "dns", fmt.Sprintf("cluster:53 > podA:%d", 1000+i))))
	}
	c.Synced(snapshot(f, nil, udp(f, "dns", "cluster:53 > podB:53")))
	if took := time.Since(start); took > time.Second {
		t.Errorf("Synced took %v for 1001 calls", took)
	}
	c.Run(ctx) // in this thread, for its network namespace
	if left := clients(t, f); left[1] || !left[2] {
		t.Errorf("left %v, want just the flow to podB", left)
	}
	if len(passes) != 1 {
		t.Errorf("%d passes for one burst, want 1", len(passes))
	}
}

// Reading the table never trusts what it reads.
func FuzzParseUDP(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80, 4, 0, 1, 0x80})
	f.Add([]byte{10, 0, 0, 0, 255, 255, 1, 0x80})
	f.Fuzz(func(_ *testing.T, msg []byte) {
		if _, ok := parseUDP(msg); ok {
			_ = entryKey(msg)
		}
	})
}

// A table that does not fit one netlink message is read to its end, and the
// kernel keeps the entries of other protocols to itself.
func TestLargeTable(t *testing.T) {
	const f = dataplane.IPv4
	enterNetns(t)
	const services, clientsEach = 40, 100
	var ports []*dataplane.ServicePort
	for s := range services {
		ports = append(ports, udp(f, fmt.Sprint(s), fmt.Sprintf("cluster:%d > podA:53", 1000+s)))
		dst, reply := addr(f, fmt.Sprintf("cluster:%d", 1000+s)), addr(f, fmt.Sprintf("podX:%d", 1000+s))
		for n := range byte(clientsEach) {
			entry{dataplane.UDP, dst, reply}.insert(t, n)
			entry{dataplane.TCP, dst, reply}.insert(t, n)
		}
	}
	table, err := openTable(f)
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	seen := 0
	if err := table.dumpUDP(t.Context(), func([]byte) { seen++ }); err != nil || seen != services*clientsEach {
		t.Errorf("the kernel gave %d entries and error %v, want %d: those of UDP alone", seen, err, services*clientsEach)
	}

	var passes []Pass
	c := newCleaner(t, f, &passes)
	c.Synced(snapshot(f, nil, ports...))
	c.step(t.Context())
	if passes[0].Deleted != services*clientsEach {
		t.Errorf("deleted %d, want %d", passes[0].Deleted, services*clientsEach)
	}
	t.Logf("%d of %d entries ended in %v", passes[0].Deleted, 2*services*clientsEach, passes[0].Took)
}

// A pass that fails is repeated, and nothing that went meanwhile is forgotten.
func TestFailedPassIsRepeated(t *testing.T) {
	const f = dataplane.IPv4
	c := New(slog.New(slog.DiscardHandler), f)
	c.learn(snapshot(f, nil, udp(f, "dns", "cluster:53 > podA:53")))
	c.learn(snapshot(f, nil))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	x := c.indexes[0]
	if pass := x.clean(cancelled); pass.Err == nil {
		t.Fatal("a pass that was cut short reports no error")
	}
	if !x.due || !x.stale(flow{dst: addr(f, "cluster:53"), replySrc: addr(f, "podA:53")}) {
		t.Error("the failed pass was taken as done: the deleted Service's flows would stay")
	}
}

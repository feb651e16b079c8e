package watcher

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"pgregory.net/rapid"
)

// world is what an API server holds, for a model of any sequence of events.
type world struct {
	services map[facts.Name]*facts.Service
	slices   map[facts.Name]*facts.Slice
	cidrs    map[facts.Name]*facts.ServiceCIDR
	node     *facts.Node
	local    []netip.Prefix
}

// all is the whole world as one change.
func (w *world) all() facts.Change {
	c := known(nil, nil, w.node)
	c.ServiceCIDRs.All = true
	for _, s := range w.services {
		c.Services.Put = append(c.Services.Put, s)
	}
	for _, s := range w.slices {
		c.Slices.Put = append(c.Slices.Put, s)
	}
	for _, s := range w.cidrs {
		c.ServiceCIDRs.Put = append(c.ServiceCIDRs.Put, s)
	}
	return c
}

// The values are few, so that events meet: the same names, addresses, ports.

func drawName(t *rapid.T) facts.Name {
	return facts.Name{Namespace: rapid.SampledFrom([]string{"shop", "till"}).Draw(t, "namespace"), Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")}
}

func drawAddrs(t *rapid.T, label string, from ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range rapid.SliceOfDistinct(rapid.SampledFrom(from), rapid.ID[string]).Draw(t, label) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func drawPrefixes(t *rapid.T, label string, from ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range rapid.SliceOfDistinct(rapid.SampledFrom(from), rapid.ID[string]).Draw(t, label) {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func drawService(t *rapid.T) *facts.Service {
	s := &facts.Service{
		Name:            drawName(t),
		Created:         rapid.Int64Range(0, 2).Draw(t, "created"),
		ClusterIPs:      drawAddrs(t, "clusterIPs", "10.96.0.1", "10.96.0.2", "fd00:96::1"),
		ExternalIPs:     drawAddrs(t, "externalIPs", "198.51.100.1", "10.96.0.2", "2001:db8::1"),
		LoadBalancerIPs: drawAddrs(t, "loadBalancerIPs", "203.0.113.1", "198.51.100.1"),
		InternalLocal:   rapid.Bool().Draw(t, "internalLocal"),
		ExternalLocal:   rapid.Bool().Draw(t, "externalLocal"),
		HealthCheckPort: rapid.SampledFrom([]uint16{0, 32000}).Draw(t, "healthCheckPort"),
	}
	s.SourceRanges = drawPrefixes(t, "ranges", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "203.0.113.0/24", "2001:db8::/32", "2001:db8:1::/48")
	for i, name := range []string{"http", "dns"}[:rapid.IntRange(1, 2).Draw(t, "ports")] {
		s.Ports = append(s.Ports, facts.ServicePort{
			Name: name, Port: uint16(80 + i),
			Protocol: rapid.SampledFrom([]dataplane.Protocol{dataplane.TCP, dataplane.UDP}).Draw(t, "protocol"),
			NodePort: rapid.SampledFrom([]uint16{0, 30000, 30001}).Draw(t, "nodePort"),
		})
	}
	return s
}

func drawSlice(t *rapid.T) *facts.Slice {
	s := &facts.Slice{
		Name: drawName(t), Service: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service"), Family: dataplane.IPv4,
		Ports: []facts.SlicePort{{Name: rapid.SampledFrom([]string{"http", "dns"}).Draw(t, "port"), Protocol: dataplane.TCP,
			Port: rapid.SampledFrom([]uint16{8080, 8081}).Draw(t, "number")}},
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "endpoints") {
		e := facts.Endpoint{
			Addr:        netip.AddrFrom4([4]byte{10, 244, 0, byte(rapid.IntRange(1, 4).Draw(t, fmt.Sprint("endpoint ", i)))}),
			Ready:       rapid.Bool().Draw(t, "ready"),
			Serving:     rapid.Bool().Draw(t, "serving"),
			Terminating: rapid.Bool().Draw(t, "terminating"),
			Local:       rapid.Bool().Draw(t, "local"),
		}
		if rapid.Bool().Draw(t, "hinted") {
			e.Place = facts.MakePlace("", "", rapid.SampledFrom([]string{"z1", "z2"}).Draw(t, "zone"))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// step does something to the world, and is the Change that tells of it.
func (w *world) step(t *rapid.T) facts.Change {
	var c facts.Change
	switch rapid.SampledFrom([]string{"service", "slice", "slice", "no service", "no slice", "node", "cidr", "relist"}).Draw(t, "step") {
	case "service":
		s := drawService(t)
		if len(s.ClusterIPs) == 0 { // of no interest: a source tells it as removed
			c.Services.Remove = []facts.Name{s.Name}
			delete(w.services, s.Name)
			break
		}
		c.Services.Put = []*facts.Service{s}
		w.services[s.Name] = s
	case "slice":
		s := drawSlice(t)
		c.Slices.Put = []*facts.Slice{s}
		w.slices[s.Name] = s
	case "no service":
		n := drawName(t)
		c.Services.Remove = []facts.Name{n}
		delete(w.services, n)
	case "no slice":
		n := drawName(t)
		c.Slices.Remove = []facts.Name{n}
		delete(w.slices, n)
	case "node":
		w.node = hereNode()
		w.node.Zone = rapid.SampledFrom([]string{"", "z1", "z2"}).Draw(t, "zone")
		w.node.IPs = drawAddrs(t, "nodeIPs", "192.0.2.1", "2001:db8::9")
		c.Nodes.Put = []*facts.Node{w.node}
	case "cidr":
		n := drawName(t)
		if rapid.Bool().Draw(t, "gone") {
			c.ServiceCIDRs.Remove = []facts.Name{n}
			delete(w.cidrs, n)
			break
		}
		s := &facts.ServiceCIDR{Name: n, CIDRs: []netip.Prefix{netip.MustParsePrefix(rapid.SampledFrom([]string{"10.96.0.0/16", "10.97.0.0/16", "10.96.4.0/24", "10.98.0.0/16"}).Draw(t, "cidr"))}}
		c.ServiceCIDRs.Put = []*facts.ServiceCIDR{s}
		w.cidrs[n] = s
	case "relist":
		return w.all()
	}
	return c
}

// content is a Snapshot as text, but for its Revision.
func content(t *rapid.T, s *dataplane.Snapshot) string {
	ports := slices.Collect(s.Ports.All())
	if !slices.IsSortedFunc(ports, func(a, b *dataplane.ServicePort) int { return a.ID.Compare(b.ID) }) || len(ports) != s.Ports.Len() {
		t.Fatal("the ports are out of order")
	}
	text, err := json.MarshalIndent(map[string]any{"node": s.Node, "cidrs": s.ServiceCIDRs, "ports": ports}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestASnapshotDependsOnTheObjectsAlone: any sequence of events ends in the same
// Snapshot as a fresh start from the final objects.
func TestASnapshotDependsOnTheObjectsAlone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		change := func(o *Options) {
			o.MasqueradeAll = rapid.Bool().Draw(rt, "masqueradeAll")
			o.NodePortAddresses = rapid.SampledFrom([][]string{nil, {"primary"}}).Draw(rt, "nodePortAddresses")
		}
		var opts Options
		w := watch(t, func(o *Options) { change(o); opts = *o })
		now := &world{services: map[facts.Name]*facts.Service{}, slices: map[facts.Name]*facts.Slice{},
			cidrs: map[facts.Name]*facts.ServiceCIDR{}, node: hereNode()}
		started := rapid.IntRange(0, 10).Draw(rt, "events before the start")
		for i := range rapid.IntRange(started, 40).Draw(rt, "events") {
			if i == started {
				w.SetAddresses(now.local)
				w.Apply(now.all())
			}
			if rapid.IntRange(0, 9).Draw(rt, "addresses") == 0 {
				now.local = drawPrefixes(rt, "local", "192.0.2.1/32", "192.0.2.2/32", "2001:db8::9/128", "10.77.0.0/24")
				w.SetAddresses(now.local)
			}
			before := w.last()
			w.Apply(now.step(rt))
			unique(rt, w.last())
			canonical(rt, w.last())
			sparing(rt, before, w.last())
		}
		w.SetAddresses(now.local)
		w.Apply(now.all())
		if w.kept.said != nil { // what is kept of the Node's facts has had its time
			for fact, since := range w.kept.lacking {
				w.kept.lacking[fact] = since.Add(-defaultPodCIDRWait)
			}
			w.forgetNode()
			w.kept.stop()
		}

		fresh := watch(t, func(o *Options) { log := o.Log; *o = opts; o.Log = log })
		fresh.SetAddresses(now.local)
		fresh.Apply(now.all())
		if w.last() == nil || fresh.last() == nil { // the Node has no address: both wait
			if w.last() == nil {
				return
			}
			fresh.waits.since = fresh.waits.since.Add(-defaultNodeWait)
			fresh.Apply(facts.Change{})
		}
		if a, b := content(rt, w.last()), content(rt, fresh.last()); a != b {
			rt.Fatalf("after the events:\n%s\n\nafresh:\n%s", a, b)
		}
		if a, b := fmt.Sprint(w.Status().Conflicts), fmt.Sprint(fresh.Status().Conflicts); a != b {
			rt.Fatalf("conflicts after the events: %s\nafresh: %s", a, b)
		}
	})
}

// unique: no address, port and protocol is in a Snapshot twice.
func unique(t *rapid.T, s *dataplane.Snapshot) {
	if s == nil {
		return
	}
	seen := map[string]dataplane.PortID{}
	for p := range s.Ports.All() {
		if len(p.Frontends) == 0 {
			t.Fatalf("%s has no frontend", p.ID)
		}
		for _, f := range p.Frontends {
			key := fmt.Sprint(p.ID.Protocol, f.Addr)
			if other, twice := seen[key]; twice {
				t.Fatalf("%s is of %s and of %s", key, other, p.ID)
			}
			seen[key] = p.ID
		}
	}
}

// canonical: no list of ranges has two that overlap or make up a wider one.
func canonical(t *rapid.T, s *dataplane.Snapshot) {
	if s == nil {
		return
	}
	check := func(of string, list []netip.Prefix) {
		for i, p := range list {
			if p != p.Masked() || p.Bits() == 0 {
				t.Fatalf("%s: %s in %v", of, p, list)
			}
			for _, q := range list[i+1:] {
				whole := netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
				if p.Overlaps(q) || p.Compare(q) > 0 || p.Bits() == q.Bits() && whole.Contains(q.Addr()) {
					t.Fatalf("%s: %s and %s in %v", of, p, q, list)
				}
			}
		}
	}
	check("ServiceCIDRs", s.ServiceCIDRs)
	for p := range s.Ports.All() {
		for _, f := range p.Frontends {
			check(fmt.Sprint(p.ID, " ", f.Addr), f.Sources)
		}
	}
}

// sparing: a new Snapshot differs from the one before it, and a new ServicePort
// from the one that it replaces.
func sparing(t *rapid.T, before, after *dataplane.Snapshot) {
	if before == nil || before == after {
		return
	}
	if content(t, before) == content(t, after) {
		t.Fatal("a Snapshot like the last was published")
	}
	for old, cur := range dataplane.Diff(before.Ports, after.Ports) {
		if old == nil || cur == nil {
			continue
		}
		a, _ := json.Marshal(old)
		b, _ := json.Marshal(cur)
		if string(a) == string(b) {
			t.Fatalf("%s is replaced by its like", old.ID)
		}
	}
}

package ipvs

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// pool is endpoints; "local" behind one says that it is on this node, and
// "drop" alone that an empty pool drops.
func pool(words ...string) *dataplane.Pool {
	p := &dataplane.Pool{}
	for _, w := range words {
		addr, local := strings.CutSuffix(w, " local")
		if w == "drop" {
			p.IfEmpty = dataplane.Drop
			continue
		}
		p.Endpoints = append(p.Endpoints, dataplane.Endpoint{Addr: netip.MustParseAddrPort(addr), Local: local})
	}
	return p
}

// unplaced is a pool of one endpoint of which nobody says where it is.
func unplaced(addr string) *dataplane.Pool {
	p := pool(addr)
	p.Endpoints[0].Unplaced = true
	return p
}

func frontend(kind dataplane.Kind, addr string, p *dataplane.Pool, snat dataplane.SNAT) dataplane.Frontend {
	return dataplane.Frontend{Kind: kind, Addr: netip.MustParseAddrPort(addr), Pool: p, SNAT: snat}
}

func port(name string, frontends ...dataplane.Frontend) *dataplane.ServicePort {
	return &dataplane.ServicePort{
		ID:        dataplane.PortID{Namespace: "shop", Service: name, Protocol: dataplane.TCP, Family: dataplane.FamilyOf(frontends[0].Addr.Addr())},
		Frontends: frontends,
	}
}

// TestPlan: what each kind of frontend wants of the kernel.
func TestPlan(t *testing.T) {
	const cluster, nodePort = "10.96.0.10:80", "0.0.0.0:30080"
	both := pool("10.244.0.5:8080 local", "10.244.1.5:8080")
	here := pool("10.244.0.5:8080 local")
	inside := func(f dataplane.Frontend, p *dataplane.Pool) dataplane.Frontend { f.Inside = p; return f }
	sources := func(f dataplane.Frontend, s ...string) dataplane.Frontend {
		for _, p := range s {
			f.Sources = append(f.Sources, netip.MustParsePrefix(p))
		}
		return f
	}
	sticky := func(p *dataplane.ServicePort, d time.Duration) *dataplane.ServicePort { p.Affinity = d; return p }
	scheduled := func(p *dataplane.ServicePort, s string) *dataplane.ServicePort { p.Scheduler = s; return p }
	e := node{family: dataplane.IPv4, scheduler: "rr", addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}}
	localhost := e
	localhost.localhost = true
	taken := e
	taken.taken = map[netip.Addr]bool{netip.MustParseAddr("10.96.0.10"): true}
	bound := e
	bound.bound = []netip.Prefix{netip.MustParsePrefix("10.96.0.10/32")}
	hairpin := "hairpin 10.244.0.5 10.244.0.5/6/8080"
	for _, tc := range []struct {
		name string
		node node
		port *dataplane.ServicePort
		want []string
	}{
		{"a ClusterIP is one service, a route and an element", e, port("web", frontend(dataplane.ClusterIP, cluster, both, dataplane.SNATNonPods)), []string{
			"service TCP 10.96.0.10:80 rr 10.244.0.5:8080 10.244.1.5:8080", "plain-masq-nonpod 10.96.0.10/6/80", "vips 10.96.0.10", hairpin,
		}},
		{"a scheduler of its own", e, scheduled(port("web", frontend(dataplane.ClusterIP, cluster, pool("10.244.1.5:80"), dataplane.SNATNone)), "mh"), []string{
			"service TCP 10.96.0.10:80 mh 10.244.1.5:80", "plain 10.96.0.10/6/80", "vips 10.96.0.10",
		}},
		{"an address on a device of the node gets no route", taken, port("web", frontend(dataplane.ExternalIP, cluster, pool("10.244.1.5:80"), dataplane.SNATAll)), []string{
			"service TCP 10.96.0.10:80 rr 10.244.1.5:80", "plain-masq-all 10.96.0.10/6/80",
		}},
		{"nor does one that the node is known to have bound", bound, port("web", frontend(dataplane.ClusterIP, cluster, pool("10.244.1.5:80"), dataplane.SNATNone)), []string{
			"service TCP 10.96.0.10:80 rr 10.244.1.5:80", "plain 10.96.0.10/6/80",
		}},
		{"an endpoint of which nobody says where it is may reach itself", e, port("web", frontend(dataplane.ClusterIP, cluster, unplaced("10.244.1.5:80"), dataplane.SNATNone)), []string{
			"service TCP 10.96.0.10:80 rr 10.244.1.5:80", "plain 10.96.0.10/6/80", "vips 10.96.0.10", "hairpin 10.244.1.5 10.244.1.5/6/80",
		}},
		{"a NodePort is a service on each address", e, port("web", frontend(dataplane.NodePort, nodePort, pool("10.244.1.5:80"), dataplane.SNATAll)), []string{
			"service TCP 192.0.2.1:30080 rr 10.244.1.5:80", "service TCP 192.0.2.2:30080 rr 10.244.1.5:80", "plain-masq-all 0.0.0.0/6/30080",
		}},
		{"and on localhost picked without IPVS", localhost, port("web", frontend(dataplane.NodePort, nodePort, pool("10.244.1.5:80", "10.244.1.6:80"), dataplane.SNATAll)), []string{
			"service TCP 192.0.2.1:30080 rr 10.244.1.5:80 10.244.1.6:80", "service TCP 192.0.2.2:30080 rr 10.244.1.5:80 10.244.1.6:80", "plain-masq-all 0.0.0.0/6/30080",
			"picks 0.0.0.0/6/30080 = pick-2", "picked 0.0.0.0/6/30080/0 = 10.244.1.5:80", "picked 0.0.0.0/6/30080/1 = 10.244.1.6:80", "(chains) pick-2",
		}},
		{"without endpoints it rejects", e, port("web", frontend(dataplane.ClusterIP, cluster, pool(), dataplane.SNATNonPods)), []string{
			"service TCP 10.96.0.10:80 rr", "empty-reject 10.96.0.10/6/80", "vips 10.96.0.10",
		}},
		{"or drops", e, port("web", frontend(dataplane.ClusterIP, cluster, pool("drop"), dataplane.SNATNonPods)), []string{
			"service TCP 10.96.0.10:80 rr", "empty-drop 10.96.0.10/6/80", "vips 10.96.0.10",
		}},
		{"external policy Local: outside to IPVS, node and pods picked", e, port("web", inside(frontend(dataplane.LoadBalancer, "10.97.0.1:80", here, dataplane.SNATNode), both)), []string{
			"service TCP 10.97.0.1:80 rr 10.244.0.5:8080", "special 10.97.0.1/6/80", "special-masq 10.97.0.1/6/80 = masq-node", "inside 10.97.0.1/6/80", "vips 10.97.0.1", hairpin,
			"picks 10.97.0.1/6/80 = pick-2", "picked 10.97.0.1/6/80/0 = 10.244.0.5:8080", "picked 10.97.0.1/6/80/1 = 10.244.1.5:8080", "(chains) pick-2",
		}},
		{"with none on this node it drops outside", e, port("web", inside(frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("drop"), dataplane.SNATNone), pool("10.244.1.5:80"))), []string{
			"service TCP 10.97.0.1:80 rr", "special 10.97.0.1/6/80", "special-empty 10.97.0.1/6/80 = do-drop", "inside 10.97.0.1/6/80", "vips 10.97.0.1",
			"picks 10.97.0.1/6/80 = pick-1", "picked 10.97.0.1/6/80/0 = 10.244.1.5:80", "(chains) pick-1",
		}},
		{"source ranges", e, port("web", sources(frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("10.244.1.5:80"), dataplane.SNATAll), "198.51.100.0/24", "203.0.113.7/32")), []string{
			"service TCP 10.97.0.1:80 rr 10.244.1.5:80", "special 10.97.0.1/6/80", "special-masq 10.97.0.1/6/80 = masq-all", "vips 10.97.0.1", "restricted 10.97.0.1/6/80",
			"sources 10.97.0.1/6/80 198.51.100.0-198.51.100.255", "sources 10.97.0.1/6/80 203.0.113.7-203.0.113.7",
		}},
		{"affinity", e, sticky(port("web", frontend(dataplane.ClusterIP, cluster, pool("10.244.1.5:80"), dataplane.SNATNone)), time.Hour), []string{
			"service TCP 10.96.0.10:80 rr 10.244.1.5:80", "special 10.96.0.10/6/80", "vips 10.96.0.10",
			"affinity-ids 10.96.0.10/6/80 = ID", "sticky 10.96.0.10/6/80 = sticky-3600", "learn ID = learn-3600",
			"affinity-pool 10.96.0.10/6/80/NUMBER = 10.244.1.5:80", "(chains) sticky-3600", "(chains) learn-3600",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := describe(tc.node.planFor(tc.port, 7), 7)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n\t%s\nwanted\n\t%s", strings.Join(got, "\n\t"), strings.Join(tc.want, "\n\t"))
			}
		})
	}
}

// describe is a plan of IPv4 in words.
func describe(p *plan, id uint32) []string {
	var out []string
	for _, s := range p.services {
		text := fmt.Sprintf("service %s %s %s", s.key.protocol, s.key.addr, s.scheduler)
		for _, e := range s.endpoints {
			text += " " + e.Addr.String()
		}
		out = append(out, text)
	}
	for e, data := range p.Own {
		out = append(out, describeElement(e.Set, e.Key, data, id))
	}
	for e := range p.Shared {
		out = append(out, describeElement(e.Set, e.Key, "", id))
	}
	slices.Sort(out)
	return out
}

func describeElement(set, key, data string, id uint32) string {
	place := func(s string) string {
		a, p, n := nft.PlaceOf(s, dataplane.IPv4)
		return fmt.Sprintf("%s/%d/%d", a, p, n)
	}
	text := set + " "
	switch set {
	case setVIPs:
		text += nft.AddrOf(key).String()
	case setHairpin:
		text += nft.AddrOf(key[:4]).String() + " " + place(key[4:])
	case setSources:
		text += fmt.Sprintf("%s %s-%s", place(key[:12]), nft.AddrOf(key[12:16]), nft.AddrOf(key[28:]))
	case setPicked:
		text += fmt.Sprintf("%s/%d", place(key[:12]), binary.NativeEndian.Uint32([]byte(key[12:])))
	case setMembers:
		text += place(key[:12]) + "/NUMBER"
	case setLearn:
		text += "ID"
	case nft.Chains:
		text += key
	default:
		text += place(key)
	}
	switch {
	case data == nft.NumberBytes(id):
		text += " = ID"
	case set == setPicked || set == setMembers:
		text += " = " + nft.EndpointOf(data, dataplane.IPv4).String()
	case data != "":
		text += " = " + data
	}
	return text
}

// TestSchedulerFlags: which schedulers are told to pass over endpoints that drain.
func TestSchedulerFlags(t *testing.T) {
	hashing := map[string]uint32{"sh": 0x08, "mh": 0x18}
	for _, s := range dataplane.Schedulers() {
		if got := flagsOf(s); got != hashing[s] {
			t.Errorf("%s has flags %#x, want %#x", s, got, hashing[s])
		}
		key := serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.10:80")}
		if got := virtual(key, s).Flags; got != hashing[s] {
			t.Errorf("a service with %s has flags %#x, want %#x", s, got, hashing[s])
		}
	}
}

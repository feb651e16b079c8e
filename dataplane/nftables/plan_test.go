package nftables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
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
	inside := func(f dataplane.Frontend, p *dataplane.Pool) dataplane.Frontend { f.Inside = p; return f }
	sources := func(f dataplane.Frontend, s ...string) dataplane.Frontend {
		for _, p := range s {
			f.Sources = append(f.Sources, netip.MustParsePrefix(p))
		}
		return f
	}
	sticky := func(p *dataplane.ServicePort, d time.Duration) *dataplane.ServicePort { p.Affinity = d; return p }
	for _, tc := range []struct {
		name string
		port *dataplane.ServicePort
		want []string
	}{
		{"a ClusterIP is one way to its endpoints", port("web", frontend(dataplane.ClusterIP, cluster, both, dataplane.SNATNonPods)), []string{
			"frontends 10.96.0.10/6/80 = pick-2 all but pods", "ways → pick-2", "(chains) pick-2", "cluster-ips 10.96.0.10",
			"endpoints 10.96.0.10/6/80/0 = 10.244.0.5:8080", "endpoints 10.96.0.10/6/80/1 = 10.244.1.5:8080", "hairpin 10.244.0.5",
		}},
		{"a NodePort is one for all addresses", port("web", frontend(dataplane.NodePort, nodePort, pool("10.244.1.5:80"), dataplane.SNATAll)), []string{
			"node-frontends 6/30080 = pick-1 all", "ways → pick-1", "(chains) pick-1", "node-endpoints 6/30080/0 = 10.244.1.5:80",
		}},
		{"without endpoints it rejects", port("web", frontend(dataplane.ClusterIP, cluster, pool(), dataplane.SNATNone)), []string{
			"frontends 10.96.0.10/6/80 = do-reject none", "ways → do-reject", "cluster-ips 10.96.0.10",
		}},
		{"or drops", port("web", frontend(dataplane.ExternalIP, cluster, pool("drop"), dataplane.SNATNone)), []string{
			"frontends 10.96.0.10/6/80 = do-drop none", "ways → do-drop",
		}},
		{"external policy Local: outside apart from node and pods", port("web", inside(frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("drop"), dataplane.SNATNode), pool("10.244.1.5:80"))), []string{
			"frontends 10.97.0.1/6/80 = special node", "ways → special", "outside 10.97.0.1/6/80 = do-drop none", "pools → do-drop",
			"inside 10.97.0.1/6/80 = pick-1 none", "pools → pick-1", "(chains) pick-1", "inside-endpoints 10.97.0.1/6/80/0 = 10.244.1.5:80",
		}},
		{"source ranges, one of them within another", port("web", sources(frontend(dataplane.LoadBalancer, "10.97.0.1:80", pool("10.244.1.5:80"), dataplane.SNATAll), "198.51.100.0/24", "198.51.100.7/32", "203.0.113.7/32")), []string{
			"frontends 10.97.0.1/6/80 = special all", "ways → special", "outside 10.97.0.1/6/80 = pick-1 none", "pools → pick-1", "(chains) pick-1",
			"endpoints 10.97.0.1/6/80/0 = 10.244.1.5:80", "restricted 10.97.0.1/6/80",
			"sources 10.97.0.1/6/80 198.51.100.0-198.51.100.255", "sources 10.97.0.1/6/80 203.0.113.7-203.0.113.7",
		}},
		{"affinity", sticky(port("web", frontend(dataplane.ClusterIP, cluster, pool("10.244.1.5:80"), dataplane.SNATNone)), time.Hour), []string{
			"frontends 10.96.0.10/6/80 = special none", "ways → special", "cluster-ips 10.96.0.10",
			"outside 10.96.0.10/6/80 = pick-1 none", "pools → pick-1", "(chains) pick-1", "endpoints 10.96.0.10/6/80/0 = 10.244.1.5:80",
			"sticky 10.96.0.10/6/80 = sticky-3600 none", "sticky-ways → sticky-3600", "(chains) sticky-3600", "affinity-ids 10.96.0.10/6/80 = ID",
			"learn ID → learn-3600", "(chains) learn-3600", "(chains) learn-prerouting", "(chains) learn-output", "affinity-pool 10.96.0.10/6/80/NUMBER = 10.244.1.5:80",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := describe(new(planner).plan(tc.port, 7), 7)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n\t%s\nwanted\n\t%s", strings.Join(got, "\n\t"), strings.Join(tc.want, "\n\t"))
			}
		})
	}
}

// describe is a plan of IPv4 in words.
func describe(p *nft.Plan, id uint32) []string {
	var out []string
	for _, elements := range []map[nft.Element]string{p.Own, p.Shared} {
		for e, data := range elements {
			out = append(out, describeElement(e.Set, e.Key, data, id))
		}
	}
	slices.Sort(out)
	return out
}

func describeElement(set, key, data string, id uint32) string {
	place, size := func(s string) string {
		a, p, n := nft.PlaceOf(s, dataplane.IPv4)
		return fmt.Sprintf("%s/%d/%d", a, p, n)
	}, 12
	if strings.HasPrefix(set, "node-") {
		place, size = func(s string) string {
			p, n := nft.NodePlaceOf(s)
			return fmt.Sprintf("%d/%d", p, n)
		}, 8
	}
	snat := func(w way) dataplane.SNAT { return dataplane.SNAT(w & snatMask >> snatShift) }
	switch bare := strings.TrimPrefix(set, "node-"); bare {
	case setClusterIPs:
		return set + " " + nft.AddrOf(key).String()
	case setHairpin:
		return set + " " + nft.AddrOf(key[4:]).String()
	case nft.Chains:
		return set + " " + key
	case setWays, setPools, setStickyWays, setStickyIn:
		if wayOf(key).chain() != data && set != setStickyIn {
			return set + " WRONG " + data
		}
		return set + " → " + data
	case setLearn:
		return set + " ID → " + data
	case setSources:
		return fmt.Sprintf("%s %s %s-%s", set, place(key[:size]), nft.AddrOf(key[size:size+4]), nft.AddrOf(key[2*size+4:]))
	case setEndpoints, setInsideOnes:
		return fmt.Sprintf("%s %s/%d = %s", set, place(key[:size]), nft.NumberOf(key[size:]), nft.EndpointOf(data, dataplane.IPv4))
	case setMembers, setMembersIn:
		return fmt.Sprintf("%s %s/NUMBER = %s", set, place(key[:size]), nft.EndpointOf(data, dataplane.IPv4))
	case setIDs:
		if data == nft.NumberBytes(id) {
			return set + " " + place(key) + " = ID"
		}
	case setRestricted:
		return set + " " + place(key)
	}
	return fmt.Sprintf("%s %s = %s %s", set, place(key), wayOf(data).chain(), snat(wayOf(data)))
}

// TestSteps walks through random Snapshots and checks after each that the
// changes add up to what a fresh start wants.
func TestSteps(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4)) // always the same walk
	rules := rulesFor(&node{family: dataplane.IPv4})
	table := nft.NewTable(dataplane.IPv4, spec(dataplane.IPv4), &nft.Counts{})
	refs, held, numbers := map[nft.Element]int{}, map[nft.Element]string{}, affinity.NewIDs()
	var prev dataplane.Ports
	for step := range 300 {
		want := randomPorts(random, prev)
		d := newDiff(table, rules, numbers.Of, refs)
		if err := d.change(numbers, prev, want, nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range []nft.Change{d.First, d.Last} {
			apply(t, held, &c)
		}
		fresh := newDiff(table, rules, numbers.Of, map[nft.Element]int{})
		if err := fresh.wantAll(want, nil); err != nil {
			t.Fatal(err)
		}
		all := map[nft.Element]string{}
		apply(t, all, &fresh.First)
		if !maps.Equal(held, all) {
			t.Fatalf("step %d: %d elements and chains, a fresh start has %d", step, len(held), len(all))
		}
		if !maps.Equal(refs, fresh.Refs) {
			t.Fatalf("step %d: shared elements are counted otherwise than by a fresh start", step)
		}
		prev = want
	}
}

// apply does to a map what a change does to the kernel.
func apply(t *testing.T, held map[nft.Element]string, c *nft.Change) {
	t.Helper()
	chain := func(name string) nft.Element { return nft.Element{Set: nft.Chains, Key: name} }
	for name, rules := range c.Chains {
		if len(rules) == 0 {
			t.Fatalf("chain %s has no rules", name)
		}
		held[chain(name)] = ""
	}
	for e, data := range c.Put {
		old, there := held[e]
		if there != c.Replaced[e] || there && old == data {
			t.Fatalf("element %v is put over %q (%t)", e, old, there)
		}
		held[e] = data
	}
	for _, e := range c.Remove {
		if _, there := held[e]; !there {
			t.Fatalf("element %v is removed and not there", e)
		}
		delete(held, e)
	}
	for _, name := range c.OldChains {
		delete(held, chain(name))
	}
}

// randomPorts changes a few ServicePorts of a Snapshot.
func randomPorts(random *rand.Rand, prev dataplane.Ports) dataplane.Ports {
	var put []*dataplane.ServicePort
	var remove []dataplane.PortID
	for range 1 + random.IntN(3) {
		i := random.IntN(8)
		name := fmt.Sprintf("s%d", i)
		endpoints := func() *dataplane.Pool {
			var words []string
			for e := range 4 {
				if random.IntN(2) == 0 {
					words = append(words, fmt.Sprintf("10.244.%d.%d:8080%s", random.IntN(2), e+1, []string{"", " local"}[random.IntN(2)]))
				}
			}
			slices.Sort(words)
			return pool(append(words, []string{"drop"}[:random.IntN(2)]...)...)
		}
		p := port(name,
			frontend(dataplane.ClusterIP, fmt.Sprintf("10.96.0.%d:80", 1+i/2*2), endpoints(), dataplane.SNAT(random.IntN(4))),
			frontend(dataplane.LoadBalancer, fmt.Sprintf("10.97.0.%d:80", i), endpoints(), dataplane.SNAT(random.IntN(4))),
			frontend(dataplane.NodePort, fmt.Sprintf("0.0.0.0:%d", 30000+i), endpoints(), dataplane.SNATAll))
		p.Frontends[0].Addr = netip.AddrPortFrom(p.Frontends[0].Addr.Addr(), uint16(80+i%2))
		if random.IntN(3) == 0 {
			p.Frontends[1].Inside = endpoints()
		}
		if random.IntN(3) == 0 {
			p.Frontends[1].Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}
		if random.IntN(3) == 0 {
			p.Affinity = time.Duration(1+random.IntN(2)) * time.Second
		}
		put = append(put, p)
		if random.IntN(4) == 0 {
			remove = append(remove, port(fmt.Sprintf("s%d", random.IntN(8)), p.Frontends[0]).ID)
		}
	}
	return prev.With(put, nil).With(nil, remove)
}

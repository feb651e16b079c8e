package ipvs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// TestSteps walks through random Snapshots and checks after each that the
// changes add up to what a fresh start wants: elements, chains, routes, services.
func TestSteps(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4)) // always the same walk
	type family struct {
		table *nft.Table
		node  node
		ids   *affinity.IDs
		refs  map[nft.Element]int
	}
	var families []*family
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		n := node{family: f, mark: 1 << 14, scheduler: "rr", localhost: f == dataplane.IPv4, addresses: []netip.Addr{exampleOf(f)}}
		families = append(families, &family{table: newTable(f, &counts{}), node: n, ids: affinity.NewIDs(), refs: map[nft.Element]int{}})
	}
	have := newModel()
	prev := snapshotOf()
	for step := range 300 {
		want := randomSnapshot(random, prev)
		fresh := newModel()
		for _, f := range families {
			d := newDiff(f.table, &f.node, f.ids.Of, f.refs)
			d.change(&f.node, f.ids, prev.Ports, want.Ports)
			have.apply(t, d)
			all := newDiff(f.table, &f.node, affinity.NewIDs().Of, map[nft.Element]int{})
			all.wantAll(want.Ports)
			fresh.apply(t, all)
			if !maps.Equal(f.refs, all.Refs) {
				t.Fatalf("step %d: who wants what is shared: %v, a fresh start has %v", step, f.refs, all.Refs)
			}
		}
		switch {
		case !maps.Equal(have.elements, fresh.elements):
			t.Fatalf("step %d: %d elements, a fresh start has %d", step, len(have.elements), len(fresh.elements))
		case !maps.Equal(have.chains, fresh.chains):
			t.Fatalf("step %d: chains %v, a fresh start has %v", step, have.chains, fresh.chains)
		case !maps.Equal(have.routes, fresh.routes):
			t.Fatalf("step %d: routes %v, a fresh start has %v", step, have.routes, fresh.routes)
		case !maps.EqualFunc(have.services, fresh.services, sameService):
			t.Fatalf("step %d: services %v, a fresh start has %v", step, have.services, fresh.services)
		}
		prev = want
	}
}

func sameService(a, b service) bool {
	return a.scheduler == b.scheduler && slices.Equal(a.endpoints, b.endpoints)
}

// model is a kernel that does as it is told.
type model struct {
	elements map[nft.Element]string
	chains   map[nft.Element]bool
	routes   map[netip.Addr]bool
	services map[serviceKey]service
}

func newModel() *model {
	return &model{map[nft.Element]string{}, map[nft.Element]bool{}, map[netip.Addr]bool{}, map[serviceKey]service{}}
}

// apply does to the model what a diff would write to the kernel.
func (m *model) apply(t *testing.T, d *diff) {
	t.Helper()
	for e, data := range d.First.Put {
		old, there := m.elements[e]
		if there != d.First.Replaced[e] || there && old == data {
			t.Fatalf("element %v is put over %q (%t)", e, old, there)
		}
		m.elements[e] = data
	}
	for name := range d.First.Chains {
		m.chains[nft.Element{Family: d.node.family, Key: name}] = true
	}
	for _, e := range d.Last.Remove {
		if _, there := m.elements[e]; !there {
			t.Fatalf("element %v is removed and not there", e)
		}
		delete(m.elements, e)
	}
	for _, name := range d.Last.OldChains {
		delete(m.chains, nft.Element{Family: d.node.family, Key: name})
	}
	for _, s := range d.services {
		m.services[s.want.key] = s.want
	}
	for _, key := range d.goneServices {
		delete(m.services, key)
	}
	for _, a := range d.newRoutes {
		m.routes[a] = true
	}
	for _, a := range d.oldRoutes {
		delete(m.routes, a)
	}
}

// randomSnapshot changes some of a Snapshot's ten ServicePorts.
func randomSnapshot(random *rand.Rand, prev *dataplane.Snapshot) *dataplane.Snapshot {
	var put []*dataplane.ServicePort
	var remove []dataplane.PortID
	for range 1 + random.IntN(3) {
		i, v6 := random.IntN(5), random.IntN(2) == 1
		p := randomPort(random, i, v6)
		if random.IntN(4) == 0 {
			remove = append(remove, p.ID)
		} else {
			put = append(put, p)
		}
	}
	next := *prev
	next.Ports = prev.Ports.With(put, remove)
	return &next
}

func randomPort(random *rand.Rand, i int, v6 bool) *dataplane.ServicePort {
	endpoints := []string{"10.244.0.1:80 local", "10.244.0.2:80 local", "10.244.1.1:80", "10.244.1.2:81", "10.244.1.3:80"}
	vip, node := fmt.Sprintf("10.96.0.%d:80", i%3), fmt.Sprintf("0.0.0.0:%d", 30000+i) // addresses are shared
	lb := fmt.Sprintf("10.97.0.%d:%d", i%2, 80+i)
	if v6 {
		endpoints = []string{"[fd00::1]:80 local", "[fd00::2]:80 local", "[fd00:1::1]:80", "[fd00:1::2]:81"}
		vip, node, lb = fmt.Sprintf("[fd96::%d]:80", i%3), fmt.Sprintf("[::]:%d", 30000+i), fmt.Sprintf("[fd97::%d]:%d", i%2, 80+i)
	}
	vip = netip.AddrPortFrom(netip.MustParseAddrPort(vip).Addr(), uint16(80+i)).String()
	some := func() *dataplane.Pool {
		var words []string
		for _, e := range endpoints {
			if random.IntN(2) == 0 {
				words = append(words, e)
			}
		}
		if random.IntN(2) == 0 {
			words = append(words, "drop")
		}
		return pool(words...)
	}
	all := some()
	snat := func() dataplane.SNAT { return dataplane.SNAT(random.IntN(4)) }
	frontends := []dataplane.Frontend{frontend(dataplane.ClusterIP, vip, all, snat())}
	for _, external := range []dataplane.Frontend{frontend(dataplane.LoadBalancer, lb, all, snat()), frontend(dataplane.NodePort, node, all, snat())} {
		if random.IntN(2) == 0 {
			continue
		}
		f := external
		if random.IntN(2) == 0 {
			f.Pool, f.Inside = some(), all
		}
		frontends = append(frontends, f)
	}
	p := port(fmt.Sprintf("web-%d", i), frontends...)
	p.Affinity = time.Duration(random.IntN(3)) * time.Minute
	return p
}

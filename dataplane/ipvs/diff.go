package ipvs

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// diff finds what to write so that the kernel holds what is wanted of a family. It is
// used for a whole Snapshot, compared with what the kernel holds, and for a change,
// compared with the plans of what the ServicePorts that changed were.
type diff struct {
	*nft.Diff // of the table
	node      *node
	number    func(*dataplane.ServicePort) uint32 // of a ServicePort with affinity

	// What nobody has wanted so far.
	heldServices map[serviceKey]heldService
	heldRoutes   map[netip.Addr]bool // false: with another source or MTU
	// found are services that are not as a Sync leaves them, but as they were read
	// back; nil: not there.
	found map[serviceKey]*heldService

	// What to write besides the table.
	services     []serviceChange
	goneServices []serviceKey
	newRoutes    []netip.Addr
	wrongRoutes  []netip.Addr // there with another source or MTU
	oldRoutes    []netip.Addr
}

type serviceChange struct {
	port  dataplane.PortID
	want  service
	held  heldService
	there bool
}

// newDiff returns a diff of a kernel of which nothing is held yet.
func newDiff(t *nft.Table, n *node, number func(*dataplane.ServicePort) uint32, refs map[nft.Element]int) *diff {
	return &diff{
		Diff: nft.NewDiff(t, rulesFor(n).optional, refs), node: n, number: number,
		heldServices: map[serviceKey]heldService{}, heldRoutes: map[netip.Addr]bool{},
	}
}

// whole begins a comparison with all that the kernel holds. Of that the table and
// the routes are taken over. state is how NodePorts are to answer on 127.0.0.0/8.
func whole(t *nft.Table, n *node, number func(*dataplane.ServicePort) uint32, held *held, state localnet.State) (*diff, error) {
	d := newDiff(t, n, number, map[nft.Element]int{})
	if err := d.HoldAll(held.table, rulesFor(n).constants(), state.Notes(chainInput)); err != nil {
		return nil, err
	}
	for _, e := range n.elements() {
		d.Want(e, "")
	}
	d.heldRoutes = held.routes
	for key, s := range held.services {
		if dataplane.FamilyOf(key.addr.Addr()) == n.family {
			d.heldServices[key] = s
		}
	}
	return d, nil
}

// wantAll wants the ServicePorts of the family, and ends the comparison.
func (d *diff) wantAll(ports dataplane.Ports) {
	for port := range ports.All() {
		if port.ID.Family == d.node.family {
			d.want(port)
		}
	}
	d.rest()
}

// change compares the ServicePorts of the family that differ between two Snapshots,
// and ends the comparison. was is the node of the first.
func (d *diff) change(was *node, ids *affinity.IDs, prev, want dataplane.Ports) {
	var next []*dataplane.ServicePort
	for old, cur := range dataplane.Diff(prev, want) {
		if old != nil && old.ID.Family == d.node.family {
			d.had(was.planFor(old, d.number(old)))
			ids.Forget(old, cur)
		}
		if cur != nil && cur.ID.Family == d.node.family {
			next = append(next, cur)
		}
	}
	for _, port := range next {
		d.want(port)
	}
	d.rest()
}

// had notes what the kernel holds of a ServicePort that changes.
func (d *diff) had(p *plan) {
	d.Had(&p.Plan)
	for e := range p.Shared {
		if e.Set == setVIPs && d.Refs[e] == 0 {
			d.heldRoutes[nft.AddrOf(e.Key)] = true
		}
	}
	for _, s := range p.services {
		found, read := d.found[s.key]
		switch {
		case !read:
			d.heldServices[s.key] = s.written()
		case found != nil:
			d.heldServices[s.key] = *found
		}
	}
}

// want wants all of a ServicePort.
func (d *diff) want(port *dataplane.ServicePort) {
	p := d.node.planFor(port, d.number(port))
	for e := range p.Shared {
		if e.Set == setVIPs && d.Refs[e] == 0 {
			d.wantRoute(nft.AddrOf(e.Key))
		}
	}
	d.WantPlan(&p.Plan)
	for _, s := range p.services {
		held, there := d.heldServices[s.key]
		delete(d.heldServices, s.key)
		d.services = append(d.services, serviceChange{port: port.ID, want: s, held: held, there: there})
	}
}

func (d *diff) wantRoute(to netip.Addr) {
	switch right, there := d.heldRoutes[to]; {
	case !there:
		d.newRoutes = append(d.newRoutes, to)
	case !right:
		d.wrongRoutes = append(d.wrongRoutes, to)
	}
	delete(d.heldRoutes, to)
}

// rest removes what nobody wanted, but for other programs' services.
func (d *diff) rest() {
	d.Rest()
	for key, s := range d.heldServices {
		if s.ours {
			d.goneServices = append(d.goneServices, key)
		}
	}
	d.oldRoutes = slices.Collect(maps.Keys(d.heldRoutes))
}

// written returns a service as a Sync leaves it in the kernel.
func (s *service) written() heldService {
	out := heldService{scheduler: s.scheduler, flags: flagsOf(s.scheduler), ours: true, destinations: make(map[netip.AddrPort]destination, len(s.endpoints))}
	for _, e := range s.endpoints {
		out.destinations[e.Addr] = destination{weight: 1}
	}
	return out
}

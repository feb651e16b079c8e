package nftables

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// diff finds what to write so that a family's table holds what is wanted.
type diff struct {
	*nft.Diff
	family dataplane.Family
	number func(*dataplane.ServicePort) uint32 // of a ServicePort with affinity
	plans  planner
}

// newDiff returns a diff of a table of which nothing is held yet.
func newDiff(t *nft.Table, r *rules, number func(*dataplane.ServicePort) uint32, refs map[nft.Element]int) *diff {
	return &diff{Diff: nft.NewDiff(t, r.optional, refs), family: r.Family, number: number}
}

// whole begins a comparison with all that the kernel holds, which is taken over. note
// is what the comments of a chain's rules carry beside their signature.
func whole(t *nft.Table, n *node, number func(*dataplane.ServicePort) uint32, held *nft.State, note func(string) string) (*diff, error) {
	r := rulesFor(n)
	d := newDiff(t, r, number, map[nft.Element]int{})
	if err := d.HoldAll(held, r.constants(), note); err != nil {
		return nil, err
	}
	d.wantNode(n)
	return d, nil
}

// wantNode wants what no ServicePort brings.
func (d *diff) wantNode(n *node) {
	for _, e := range n.elements() {
		d.Want(e, "")
	}
}

// wantAll wants the ServicePorts of the family, and ends the comparison. After each
// ServicePort it calls each, if that is not nil.
func (d *diff) wantAll(ports dataplane.Ports, each func() error) error {
	for port := range ports.All() {
		if port.ID.Family != d.family {
			continue
		}
		if err := d.want(port, each); err != nil {
			return err
		}
	}
	d.Rest()
	return nil
}

func (d *diff) want(port *dataplane.ServicePort, each func() error) error {
	d.WantPlan(d.plans.plan(port, d.number(port)))
	if each == nil {
		return nil
	}
	return each()
}

// change compares the ServicePorts of the family that differ between two Snapshots,
// and ends the comparison. After each ServicePort it calls each, if that is not nil.
func (d *diff) change(ids *affinity.IDs, prev, want dataplane.Ports, each func() error) error {
	var next []*dataplane.ServicePort
	for old, cur := range dataplane.Diff(prev, want) {
		if old != nil && old.ID.Family == d.family {
			d.Had(d.plans.plan(old, d.number(old)))
			ids.Forget(old, cur)
		}
		if cur != nil && cur.ID.Family == d.family {
			next = append(next, cur)
		}
	}
	for _, port := range next {
		if err := d.want(port, each); err != nil {
			return err
		}
	}
	d.Rest()
	return nil
}

// changeNode compares what depends on the node alone. If the state of route_localnet
// changes, the rule that guards it is written, whose comment says who switched it on.
func (d *diff) changeNode(was, next *node, sameState bool) error {
	for _, e := range was.elements() {
		d.Hold(e, "")
	}
	d.wantNode(next)
	if !sameState {
		d.First.Chains[chainInput] = rulesFor(next).constants()[chainInput]
	}
	if next.sameRules(was) {
		return nil
	}
	return d.ChangeChains(rulesFor(was).constants(), rulesFor(next).constants())
}

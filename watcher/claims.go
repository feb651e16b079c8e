package watcher

import (
	"cmp"
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Conflict is a frontend that several ServicePorts want. Only one may have it.
type Conflict struct {
	Addr     netip.AddrPort // of a NodePort: unspecified address
	Protocol dataplane.Protocol
	Holder   string   // the port of a Service that has it: "namespace/name:port"
	Without  []string // the others, in the order in which they would get it
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s %s is %s's, so that %s is without it", c.Protocol, c.Addr, c.Holder, strings.Join(c.Without, ", "))
}

// claims knows who has a frontend where several want it. An API server lets no
// two Services have the same ClusterIP or node port, but it does let them have
// the same external or load balancer address, and manifests can say anything.
//
// A tenant can make thousands of Services that want one address. So no change
// costs more than the logarithm of their number, and nothing is put into words
// here.
type claims struct {
	by        map[address]contenders
	contested map[address]struct{} // those with more than one contender
	// lost and won have, since takeLost was called, perhaps lost and got a frontend.
	lost, won []*claim
}

type address struct {
	addr     netip.AddrPort
	protocol dataplane.Protocol
}

// claim is one frontend that a Service wants.
type claim struct {
	service  *service
	facts    *facts.Service // of the service when it claimed; immutable, so that no lock is needed
	port     int            // index into its ports
	frontend int            // index into the service's frontends
	at       int            // index among the contenders; -1: withdrawn
	kind     dataplane.Kind
	told     bool // it was reported that the frontend is another's
}

// contenders are the claims on one address: a heap, the holder first.
type contenders []*claim

// Len implements heap.Interface.
func (c contenders) Len() int { return len(c) }

// Less implements heap.Interface.
func (c contenders) Less(i, j int) bool { return c[i].compare(c[j]) < 0 }

// Swap implements heap.Interface.
func (c contenders) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].at, c[j].at = i, j
}

// Push implements heap.Interface.
func (c *contenders) Push(x any) {
	added := x.(*claim)
	added.at = len(*c)
	*c = append(*c, added)
}

// Pop implements heap.Interface.
func (c *contenders) Pop() any {
	last := len(*c) - 1
	gone := (*c)[last]
	(*c)[last], gone.at = nil, -1
	*c = (*c)[:last]
	return gone
}

func newClaims() claims {
	return claims{by: map[address]contenders{}, contested: map[address]struct{}{}}
}

// compare orders claims: whose is a ClusterIP before others, because the API
// server allocates those and a Service's owner writes external addresses at
// will; then the older Service; then by name.
func (c *claim) compare(d *claim) int {
	rank := func(k dataplane.Kind) int {
		if k == dataplane.ClusterIP {
			return 0
		}
		return 1
	}
	if r := cmp.Or(cmp.Compare(rank(c.kind), rank(d.kind)), cmp.Compare(c.facts.Created, d.facts.Created)); r != 0 {
		return r
	}
	if r := c.facts.Name.Compare(d.facts.Name); r != 0 {
		return r
	}
	return cmp.Or(strings.Compare(c.facts.Ports[c.port].Name, d.facts.Ports[d.port].Name), cmp.Compare(c.port, d.port))
}

func (c *claim) name() string {
	name := c.facts.Name.String()
	if port := c.facts.Ports[c.port].Name; port != "" {
		name += ":" + port
	}
	return name
}

func addressOf(f policy.Frontend) address { return address{f.Addr, f.Protocol} }

// told returns the frontends of s of which it was reported that they are another's.
func (s *service) told() map[address]struct{} {
	var out map[address]struct{}
	for i, f := range s.frontends {
		if s.claims[i].told {
			if out == nil {
				out = map[address]struct{}{}
			}
			out[addressOf(f)] = struct{}{}
		}
	}
	return out
}

// add puts in the claims of s. Who loses a frontend by that is dirty. told is
// what was reported of s before its facts changed.
func (c *claims) add(s *service, told map[address]struct{}, dirty *worklist) {
	s.claims = make([]claim, len(s.frontends))
	for i, f := range s.frontends {
		a, added := addressOf(f), &s.claims[i]
		_, wasTold := told[a]
		*added = claim{service: s, facts: s.facts, port: f.Port(), frontend: i, kind: f.Kind, told: wasTold}
		all := c.by[a]
		var before *claim
		if len(all) > 0 {
			before = all[0]
			c.contested[a] = struct{}{}
		}
		heap.Push(&all, added)
		c.by[a] = all
		switch {
		case before == nil:
		case all[0] == added:
			dirty.add(before.service)
			c.lost = append(c.lost, before)
		default:
			c.lost = append(c.lost, added)
		}
	}
}

// remove takes out the claims of s. Who gets a frontend by that is dirty.
func (c *claims) remove(s *service, dirty *worklist) {
	for i, f := range s.frontends {
		a, gone := addressOf(f), &s.claims[i]
		all := c.by[a]
		held := gone.at == 0
		heap.Remove(&all, gone.at)
		c.by[a] = all
		switch len(all) {
		case 0:
			delete(c.by, a)
		case 1:
			delete(c.contested, a)
		}
		if held && len(all) > 0 {
			dirty.add(all[0].service)
			c.won = append(c.won, all[0])
		}
	}
	s.claims = nil
}

// held returns which of its frontends s has.
func (c *claims) held(s *service) []policy.Frontend {
	if len(c.contested) == 0 || !slices.ContainsFunc(s.claims, claim.loses) {
		return s.frontends
	}
	var out []policy.Frontend
	for i, f := range s.frontends {
		if s.claims[i].at == 0 {
			out = append(out, f)
		}
	}
	return out
}

// loses reports whether somebody else has what a claim is for.
func (c claim) loses() bool { return c.at != 0 }

// Loss is a Service that is without a frontend, because another one has it.
type Loss struct {
	address       address
	holder, loser *claim
}

// Service names the Service that is without the frontend.
func (l Loss) Service() facts.Name { return l.loser.facts.Name }

// UID returns the UID of that Service. Empty means unknown.
func (l Loss) UID() string { return l.loser.facts.UID }

func (l Loss) String() string {
	return Conflict{l.address.addr, l.address.protocol, l.holder.name(), []string{l.loser.name()}}.String()
}

// takeLost returns the Services that lost a frontend since it was called last,
// each once while it is without it, whoever the holder is.
func (c *claims) takeLost() []Loss {
	for _, w := range c.won {
		if w.at == 0 {
			w.told = false
		}
	}
	var out []Loss
	for _, l := range c.lost {
		if l.at <= 0 || l.told { // withdrawn, or it has the frontend now
			continue
		}
		l.told = true
		a := addressOf(l.service.frontends[l.frontend])
		out = append(out, Loss{a, c.by[a][0], l})
	}
	c.lost, c.won = nil, nil
	return out
}

// contest is the claims on one address, to be put into words without the lock.
type contest struct {
	address address
	all     contenders
}

// contests returns a copy of what is contested.
func (c *claims) contests() []contest {
	out := make([]contest, 0, len(c.contested))
	for a := range c.contested {
		out = append(out, contest{a, slices.Clone(c.by[a])})
	}
	return out
}

func (c contest) conflict() Conflict {
	slices.SortFunc(c.all, (*claim).compare)
	out := Conflict{Addr: c.address.addr, Protocol: c.address.protocol, Holder: c.all[0].name()}
	for _, d := range c.all[1:] {
		out.Without = append(out.Without, d.name())
	}
	return out
}

func (a address) compare(b address) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), a.addr.Compare(b.addr))
}

package watcher

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
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

// claims tells who has a frontend where several want it. An API server lets no
// two Services have the same ClusterIP or node port, but it does let them have
// the same external or load balancer address, and manifests can say anything.
type claims struct {
	log  *slog.Logger
	tell func(service facts.Name, uid, why string) // nil: nobody is told, beside the log
	by   map[address][]claimant                    // the holder first
	// contested are the addresses with more than one claimant, with what the
	// log was told of them.
	contested map[address]string
	untold    map[address]struct{} // those of which the log was not told
}

type address struct {
	addr     netip.AddrPort
	protocol dataplane.Protocol
}

type claimant struct {
	service *service
	port    int // index into its ports
	kind    dataplane.Kind
}

func newClaims(log *slog.Logger, tell func(facts.Name, string, string)) claims {
	return claims{log: log, tell: tell, by: map[address][]claimant{}, contested: map[address]string{}, untold: map[address]struct{}{}}
}

// compare orders claimants: whose is a ClusterIP before others, because the API
// server allocates those and a Service's owner writes external addresses at
// will; then the older Service; then by name.
func (c claimant) compare(d claimant) int {
	rank := func(k dataplane.Kind) int {
		if k == dataplane.ClusterIP {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(rank(c.kind), rank(d.kind)),
		cmp.Compare(c.service.facts.Created, d.service.facts.Created),
		c.service.name.Compare(d.service.name),
		strings.Compare(c.name(), d.name()),
		cmp.Compare(c.port, d.port))
}

func (c claimant) name() string {
	name := c.service.name.String()
	if port := c.service.facts.Ports[c.port].Name; port != "" {
		name += ":" + port
	}
	return name
}

// add puts in the claims of s. Who loses a frontend by that is dirty.
func (c *claims) add(s *service, dirty *worklist) {
	for _, f := range s.frontends {
		a := address{f.Addr, f.Protocol}
		now := claimant{s, f.Port(), f.Kind}
		all := c.by[a]
		i, _ := slices.BinarySearchFunc(all, now, claimant.compare)
		if i == 0 && len(all) > 0 {
			dirty.add(all[0].service)
		}
		c.by[a] = slices.Insert(all, i, now)
		c.touch(a)
	}
}

// remove takes out the claims of s. Who gets a frontend by that is dirty.
func (c *claims) remove(s *service, dirty *worklist) {
	for _, f := range s.frontends {
		a := address{f.Addr, f.Protocol}
		held := c.by[a][0].service == s
		left := slices.DeleteFunc(c.by[a], func(d claimant) bool { return d.service == s && d.port == f.Port() })
		if len(left) == 0 {
			delete(c.by, a)
		} else {
			c.by[a] = left
			if held {
				dirty.add(left[0].service)
			}
		}
		c.touch(a)
	}
}

// touch notes whether an address is contested now.
func (c *claims) touch(a address) {
	if len(c.by[a]) > 1 {
		if _, known := c.contested[a]; !known {
			c.contested[a] = ""
		}
		c.untold[a] = struct{}{}
	} else {
		delete(c.contested, a)
		delete(c.untold, a)
	}
}

// held is which of its frontends s has.
func (c *claims) held(s *service) []policy.Frontend {
	lost := func(f policy.Frontend) bool {
		first := c.by[address{f.Addr, f.Protocol}][0]
		return first.service != s || first.port != f.Port()
	}
	if len(c.contested) == 0 || !slices.ContainsFunc(s.frontends, lost) {
		return s.frontends
	}
	return slices.DeleteFunc(slices.Clone(s.frontends), lost)
}

// report logs what is contested now and was not, or by others.
func (c *claims) report() {
	for _, a := range slices.SortedFunc(maps.Keys(c.untold), address.compare) {
		conflict := c.conflict(a)
		if said := conflict.String(); said != c.contested[a] {
			c.log.Warn("several Services want the same address and port", "address", a.addr.String(),
				"protocol", a.protocol.String(), "holder", conflict.Holder, "without", conflict.Without)
			c.contested[a] = said
			c.tellLosers(a, conflict)
		}
	}
	if len(c.untold) > 0 {
		c.untold = map[address]struct{}{}
	}
}

// tellLosers tells each Service that is without an address.
func (c *claims) tellLosers(a address, conflict Conflict) {
	if c.tell == nil {
		return
	}
	for _, loser := range c.by[a][1:] {
		s := loser.service
		c.tell(s.name, s.facts.UID, fmt.Sprintf("%s %s is %s's, so that %s is without it", a.protocol, a.addr, conflict.Holder, loser.name()))
	}
}

func (c *claims) conflicts() []Conflict {
	var out []Conflict
	for _, a := range slices.SortedFunc(maps.Keys(c.contested), address.compare) {
		out = append(out, c.conflict(a))
	}
	return out
}

func (c *claims) conflict(a address) Conflict {
	all := c.by[a]
	out := Conflict{Addr: a.addr, Protocol: a.protocol, Holder: all[0].name()}
	for _, d := range all[1:] {
		out.Without = append(out.Without, d.name())
	}
	return out
}

func (a address) compare(b address) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), a.addr.Compare(b.addr))
}

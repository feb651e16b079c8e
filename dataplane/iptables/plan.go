package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// Ranks order chains so that each leads only to chains of a lower rank (of its
// own rank, to those before it).
const (
	rankFixed = iota // verdicts, masquerade marks
	rankPool         // a ServicePort's own, from here
	rankChoice
	rankSources
	rankTree        // its deepest node, at most
	rankHook = 1000 // what built-in chains lead to
)

// entry is a key of the tree of frontends or of NodePorts, and how its rule ends.
type entry struct {
	nodePort bool
	key      string
	value    string
}

// plan is what the nat table shall hold of one ServicePort alone. It depends on the
// ServicePort, on how pods are known, and on nothing else.
type plan struct {
	chains  []restore.Chain
	entries []entry
}

// planFor returns the plan of a ServicePort. A frontend leads to sources (where they
// are limited), to a choice (where whom to masquerade or the pool depends on more than
// the pool's chain knows), and to a pool.
func planFor(p *dataplane.ServicePort, n *node) plan {
	r := planner{port: p, node: n, hash: portHash(p.ID)}
	for i := range p.Frontends {
		f := &p.Frontends[i]
		if f.Inside == nil || f.Inside == f.Pool {
			r.use(f.Pool, f.SNAT, clientsAll)
			continue
		}
		r.use(f.Pool, f.SNAT, clientsOutside)
		r.use(f.Inside, f.SNAT, clientsInside)
	}
	for i := range r.pools {
		u := &r.pools[i]
		if !u.direct {
			u.snat = dataplane.SNATNone
		}
		r.plan.chains = append(r.plan.chains, r.pool(r.name(prefixPool, i), *u))
	}
	for i := range p.Frontends {
		r.frontend(&p.Frontends[i])
	}
	return r.plan
}

// planner makes one plan.
type planner struct {
	port    *dataplane.ServicePort
	node    *node
	hash    string
	pools   []poolUse
	choices []restore.Chain // by index in the names; bodies found again are shared
	sources []restore.Chain
	plan    plan
}

// poolUse is a pool and whom its chain masquerades by itself: as many as it can for all
// frontends that lead to it. So the usual ServicePort, with a ClusterIP alone, needs
// one chain.
type poolUse struct {
	pool   *dataplane.Pool
	snat   dataplane.SNAT
	direct bool // some frontend leads here all its clients
}

// clients are those that a frontend leads to a pool.
type clients uint8

const (
	clientsAll     clients = iota
	clientsOutside         // those that are neither the node nor its pods
	clientsInside          // the node and its pods
)

// use notes that a frontend leads some clients to a pool. A frontend that parts
// its clients has a choice chain, which masquerades for itself and only bounds
// what the pool's chain may do.
func (r *planner) use(pool *dataplane.Pool, most dataplane.SNAT, who clients) {
	switch {
	case who == clientsInside && most == dataplane.SNATNode:
		most = dataplane.SNATNonPods // the same, for the node and its pods
	case who == clientsOutside && most == dataplane.SNATNone:
		most = dataplane.SNATNode // the same, for all but the node
	case who == clientsOutside && most == dataplane.SNATNonPods:
		most = dataplane.SNATAll // the same, for all but pods
	}
	i := slices.IndexFunc(r.pools, func(u poolUse) bool { return u.pool == pool })
	if i < 0 {
		i = len(r.pools)
		r.pools = append(r.pools, poolUse{pool: pool, snat: most})
	}
	if width(most) < width(r.pools[i].snat) {
		r.pools[i].snat = most
	}
	r.pools[i].direct = r.pools[i].direct || who == clientsAll
}

// width orders SNAT: each masquerades all whom one of less width does.
func width(s dataplane.SNAT) int {
	return slices.Index([]dataplane.SNAT{dataplane.SNATNone, dataplane.SNATNode, dataplane.SNATNonPods, dataplane.SNATAll}, s)
}

// name returns the name of the i-th chain of one kind of this ServicePort.
func (r *planner) name(prefix string, i int) string {
	return prefix + r.hash + "-" + strconv.Itoa(i)
}

func (r *planner) poolChain(pool *dataplane.Pool) (string, dataplane.SNAT) {
	i := slices.IndexFunc(r.pools, func(u poolUse) bool { return u.pool == pool })
	return r.plan.chains[i].Name, r.pools[i].snat
}

// pool returns a pool's chain. It leads straight to an endpoint, with no chain per
// endpoint, which would make a restore under nft quadratic.
func (r *planner) pool(name string, u poolUse) restore.Chain {
	endpoints := u.pool.Endpoints
	if len(endpoints) == 0 {
		if u.pool.IfEmpty == dataplane.Drop {
			return restore.Chain{Name: name, Body: "-g " + chainDrop + "\n", Rank: rankPool}
		}
		return restore.Chain{Name: name, Body: "-g " + chainReject + "\n", Rank: rankPool}
	}
	protocol := "-p " + strings.ToLower(r.port.ID.Protocol.String())
	b := make([]byte, 0, 128*len(endpoints))
	b = append(b, r.node.masquerade(u.snat)...)
	if r.port.Affinity > 0 {
		for _, e := range endpoints {
			b = append(b, protocol...)
			b = r.recent(b, "--update --seconds "+strconv.Itoa(int(r.port.Affinity.Seconds()))+" --reap", e)
			b = dnat(b, e)
		}
	}
	for i, e := range endpoints {
		b = append(b, protocol...)
		if left := len(endpoints) - i; left > 1 {
			b = append(append(b, " -m statistic --mode random --probability "...), probability(left)...)
		}
		if r.port.Affinity > 0 {
			b = r.recent(b, "--set", e)
		}
		b = dnat(b, e)
	}
	return restore.Chain{Name: name, Body: string(b), Rank: rankPool}
}

// recent appends the match that looks up or puts down the client's address in
// the list of one endpoint. The list lives as long as a rule names it, so it
// outlives the chain's rewriting, and goes with the endpoint (KUBE-PROXY §1.11).
func (r *planner) recent(to []byte, what string, e dataplane.Endpoint) []byte {
	mask := "255.255.255.255"
	if r.port.ID.Family == dataplane.IPv6 {
		mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return fmt.Appendf(to, " -m recent %s --name %s --mask %s --rsource", what, recentList(r.port.ID, e), mask)
}

func dnat(to []byte, e dataplane.Endpoint) []byte {
	to = append(to, " -j DNAT --to-destination "...)
	return append(e.Addr.AppendTo(to), '\n')
}

// probability returns one in n, as the kernel keeps it: a multiple of 2^-31.
func probability(n int) string {
	const one = 1 << 31
	return strconv.FormatFloat(float64((one+n/2)/n)/one, 'f', 11, 64)
}

// frontend plans what is before the pools for one frontend.
func (r *planner) frontend(f *dataplane.Frontend) {
	target, snat := r.poolChain(f.Pool)
	switch {
	case f.Inside != nil && f.Inside != f.Pool:
		inside, _ := r.poolChain(f.Inside)
		var b strings.Builder
		b.WriteString(r.node.masquerade(f.SNAT))
		for _, pods := range r.node.pods {
			b.WriteString(pods + "-g " + inside + "\n")
		}
		b.WriteString("-m addrtype --src-type LOCAL -g " + inside + "\n")
		b.WriteString("-g " + target + "\n")
		target = r.before(prefixChoice, &r.choices, b.String())
	case f.SNAT != snat:
		target = r.before(prefixChoice, &r.choices, r.node.masquerade(f.SNAT)+"-g "+target+"\n")
	}
	if len(f.Sources) > 0 {
		var b strings.Builder
		for _, s := range f.Sources {
			b.WriteString(fromPrefix(s) + "-g " + target + "\n")
		}
		b.WriteString("-g " + chainDrop + "\n")
		target = r.before(prefixSources, &r.sources, b.String())
	}
	e := entryOf(r.port, f)
	e.value = restore.Comment(portName(r.port.ID)+" "+f.Kind.String()) + " -g " + target
	r.plan.entries = append(r.plan.entries, e)
}

// entryOf returns the entry of a frontend, without its value.
func entryOf(p *dataplane.ServicePort, f *dataplane.Frontend) entry {
	key := portKey(p.ID.Protocol, f.Addr.Port())
	if f.Kind == dataplane.NodePort {
		return entry{nodePort: true, key: key}
	}
	return entry{key: addrKey(f.Addr.Addr()) + key}
}

// before returns the chain of a kind with this body, and adds it if there is none.
func (r *planner) before(prefix string, have *[]restore.Chain, body string) string {
	for _, c := range *have {
		if c.Body == body {
			return c.Name
		}
	}
	c := restore.Chain{Name: r.name(prefix, len(*have)), Body: body, Rank: rankChoice}
	if prefix == prefixSources {
		c.Rank = rankSources
	}
	*have = append(*have, c)
	r.plan.chains = append(r.plan.chains, c)
	return c.Name
}

func portName(id dataplane.PortID) string {
	name := id.Namespace + "/" + id.Service
	if id.Port != "" {
		name += ":" + id.Port
	}
	return name
}

// vetPort returns why a ServicePort cannot be written as rules. Nil means that it can.
func vetPort(p *dataplane.ServicePort) error {
	id := p.ID
	if id.Protocol != dataplane.TCP && id.Protocol != dataplane.UDP && id.Protocol != dataplane.SCTP {
		return fmt.Errorf("iptables cannot forward %s", id.Protocol)
	}
	check := func(what string, a netip.AddrPort) error {
		if !a.IsValid() || dataplane.FamilyOf(a.Addr()) != id.Family || a.Addr().Zone() != "" || a.Port() == 0 {
			return fmt.Errorf("%s %s is not an address and port of %s", what, a, id.Family)
		}
		return nil
	}
	for _, f := range p.Frontends {
		if err := check("frontend", f.Addr); err != nil {
			return err
		}
		for _, s := range f.Sources {
			if !s.IsValid() || dataplane.FamilyOf(s.Addr()) != id.Family {
				return fmt.Errorf("source range %s is not of %s", s, id.Family)
			}
		}
		for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
			if pool == nil {
				continue
			}
			for _, e := range pool.Endpoints {
				if err := check("endpoint", e.Addr); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

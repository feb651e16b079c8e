package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// chain is a chain with its rules, each without "-A name" and with a newline,
// as iptables-save writes them.
type chain struct {
	name string
	body string
	rank rank
	// fresh: it is not in the kernel yet, so nothing leads to it.
	fresh bool
}

// rank orders chains so that each leads only to chains of a lower rank (of its
// own rank, to those before it).
type rank int

const (
	rankFixed rank = iota // verdicts, masquerade marks
	rankPool              // a ServicePort's own, from here
	rankEntry
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

// portRules is all that one ServicePort needs in the nat table: a function of
// the ServicePort and of how pods are told, and of nothing else.
type portRules struct {
	chains  []chain
	entries []entry
}

// renderPort writes the rules of a ServicePort. A frontend's way is: sources
// (where they are limited), entry (where whom to masquerade or the pool depends
// on more than the pool chain can tell), pool.
func renderPort(p *dataplane.ServicePort, e *env) portRules {
	r := portRenderer{port: p, env: e, hash: portHash(p.ID)}
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
		r.rules.chains = append(r.rules.chains, r.pool(r.name(prefixPool, i), *u))
	}
	for i := range p.Frontends {
		r.frontend(&p.Frontends[i])
	}
	return r.rules
}

type portRenderer struct {
	port    *dataplane.ServicePort
	env     *env
	hash    string
	pools   []poolUse
	entries []chain // by index in the names; bodies found again are shared
	sources []chain
	rules   portRules
}

// poolUse is a pool and whom its chain masquerades by itself: as many as it can
// do for all frontends that lead to it. The usual ServicePort, with a ClusterIP
// alone, so needs one chain.
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
// its clients has an entry chain, which masquerades for itself and only bounds
// what the pool's chain may do.
func (r *portRenderer) use(pool *dataplane.Pool, most dataplane.SNAT, who clients) {
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

// width orders the choices of SNAT: each masquerades all whom one of less width
// does.
func width(s dataplane.SNAT) int {
	return slices.Index([]dataplane.SNAT{dataplane.SNATNone, dataplane.SNATNode, dataplane.SNATNonPods, dataplane.SNATAll}, s)
}

// name is the i-th chain of one kind of this ServicePort.
func (r *portRenderer) name(prefix string, i int) string {
	return prefix + r.hash + "-" + strconv.Itoa(i)
}

func (r *portRenderer) poolChain(pool *dataplane.Pool) (string, dataplane.SNAT) {
	i := slices.IndexFunc(r.pools, func(u poolUse) bool { return u.pool == pool })
	return r.rules.chains[i].name, r.pools[i].snat
}

// pool writes a pool's chain: straight to an endpoint, with no chain per
// endpoint, which would make a restore under nft quadratic.
func (r *portRenderer) pool(name string, u poolUse) chain {
	endpoints := u.pool.Endpoints
	if len(endpoints) == 0 {
		if u.pool.IfEmpty == dataplane.Drop {
			return chain{name: name, body: "-g " + chainDrop + "\n", rank: rankPool}
		}
		return chain{name: name, body: "-g " + chainReject + "\n", rank: rankPool}
	}
	protocol := "-p " + strings.ToLower(r.port.ID.Protocol.String())
	b := make([]byte, 0, 128*len(endpoints))
	b = append(b, r.env.masquerade(u.snat)...)
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
	return chain{name: name, body: string(b), rank: rankPool}
}

// recent appends the match that looks up or puts down the client's address in
// the list of one endpoint. The list lives as long as a rule names it, so it
// outlives the chain's rewriting, and goes with the endpoint (KUBE-PROXY §1.11).
func (r *portRenderer) recent(to []byte, what string, e dataplane.Endpoint) []byte {
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

// probability is one in n, as the kernel keeps it: a multiple of 2^-31.
func probability(n int) string {
	const one = 1 << 31
	return strconv.FormatFloat(float64((one+n/2)/n)/one, 'f', 11, 64)
}

// frontend writes what stands before the pools for one frontend.
func (r *portRenderer) frontend(f *dataplane.Frontend) {
	target, snat := r.poolChain(f.Pool)
	switch {
	case f.Inside != nil && f.Inside != f.Pool:
		inside, _ := r.poolChain(f.Inside)
		var b strings.Builder
		b.WriteString(r.env.masquerade(f.SNAT))
		for _, pods := range r.env.pods {
			b.WriteString(pods + "-g " + inside + "\n")
		}
		b.WriteString("-m addrtype --src-type LOCAL -g " + inside + "\n")
		b.WriteString("-g " + target + "\n")
		target = r.before(prefixEntry, &r.entries, b.String())
	case f.SNAT != snat:
		target = r.before(prefixEntry, &r.entries, r.env.masquerade(f.SNAT)+"-g "+target+"\n")
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
	e.value = comment(portName(r.port.ID)+" "+f.Kind.String()) + " -g " + target
	r.rules.entries = append(r.rules.entries, e)
}

// entryOf is the entry of a frontend, without its value.
func entryOf(p *dataplane.ServicePort, f *dataplane.Frontend) entry {
	key := portKey(p.ID.Protocol, f.Addr.Port())
	if f.Kind == dataplane.NodePort {
		return entry{nodePort: true, key: key}
	}
	return entry{key: addrKey(f.Addr.Addr()) + key}
}

// before gives the chain of a kind with this body, and adds it if there is none.
func (r *portRenderer) before(prefix string, have *[]chain, body string) string {
	for _, c := range *have {
		if c.body == body {
			return c.name
		}
	}
	c := chain{name: r.name(prefix, len(*have)), body: body, rank: rankEntry}
	if prefix == prefixSources {
		c.rank = rankSources
	}
	*have = append(*have, c)
	r.rules.chains = append(r.rules.chains, c)
	return c.name
}

func portName(id dataplane.PortID) string {
	name := id.Namespace + "/" + id.Service
	if id.Port != "" {
		name += ":" + id.Port
	}
	return name
}

// comment writes a comment for people; nothing reads it back. It keeps to
// characters that need no escape, and to the kernel's 255.
func comment(text string) string {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || strings.ContainsRune("\"'`\\", c) {
			return '_'
		}
		return c
	}, text)
	return ` -m comment --comment "` + clean[:min(len(clean), 255)] + `"`
}

// vetPort tells why a ServicePort cannot be written as rules; nil: it can.
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

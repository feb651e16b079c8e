package nftables

import (
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// rules makes the chains of one family's table. How many there are does not
// depend on how many Services there are.
//
// A number waits in the packet's priority from one rule to the next: what a rule
// keeps in registers over two lookups, nft cannot print. In the end the priority
// is 0, as it is without us.
type rules struct {
	nft.Words
	node *node
}

func rulesFor(n *node) *rules { return &rules{Words: nft.Words{Family: n.family}, node: n} }

// constants returns the chains that no ServicePort changes.
func (r *rules) constants() map[string][]nft.Rule {
	chains := map[string][]nft.Rule{
		chainPrerouting:  {{nft.Jump(chainServices)}},
		chainOutput:      {{nft.Jump(chainServices)}},
		chainAgain:       {{nft.Jump(chainServices)}},
		chainAgainOut:    {{nft.Jump(chainServices)}},
		chainPostrouting: r.postrouting(),
		chainLastOutput:  {{nft.Jump(chainUnserved)}},
		chainForward:     append(r.invalid(), nft.Untranslated().Then(nft.Goto(chainUnserved))),
		chainInput:       nil,

		chainServices:    r.services(),
		chainFound:       r.found(false),
		chainFoundNode:   r.found(true),
		chainLocalhost:   nil,
		chainSpecial:     r.special(false),
		chainSpecialNode: r.special(true),
		chainAsk:         r.ask(chainFromIn),
		chainAskNode:     r.ask(chainFromInNode),
		chainFromIn:      r.inside(false),
		chainFromInNode:  r.inside(true),
		chainMark:        {nft.SetMark(r.node.mark, r.node.mark)},
		chainMarkOthers:  append(r.FromPods(r.node.pods, nft.Goto(chainUnmark)), nft.Rule{nft.Goto(chainMark)}),
		chainMarkNode:    {nft.SourceIsLocal().Then(nft.Goto(chainMark)), {nft.Goto(chainUnmark)}},
		chainUnmark:      {nft.SetMark(r.node.mark, 0)},
		chainUnserved:    r.unserved(),
		chainReject:      append([]nft.Rule{{&expr.Counter{}}}, r.Reject()...),
		chainDrop:        {{&expr.Counter{}, nft.Verdict(expr.VerdictDrop, "")}},
	}
	if r.node.localhost {
		// Nobody but the node itself may use NodePorts on loopback.
		for _, name := range []string{chainOutput, chainAgainOut} {
			chains[name] = slices.Insert(chains[name], 0, r.Loopback(r.Destination(0)).Then(nft.Goto(chainLocalhost)))
		}
		chains[chainLocalhost] = []nft.Rule{reset(), r.look(setFrontends, true), isFound(chainFoundNode)}
		chains[chainInput] = []nft.Rule{r.GuardLocalhost()}
	}
	return chains
}

// optional returns the rules of a chain that exists while something needs it.
func (r *rules) optional(chain string) []nft.Rule {
	if chain == chainLearn || chain == chainLearnOut {
		return []nft.Rule{
			nft.CtState().AnyBit(expr.CtStateBitNEW).Then(nft.CtStatus()...).AnyBit(nft.StatusDNAT).Then(nft.Priority(0)...).Go(setLearn),
		}
	}
	if w, ok := unnumbered(chain, prefixPick); ok {
		return []nft.Rule{nft.Rule{&expr.Numgen{Register: nft.Reg(0), Modulus: uint32(w & wayCount), Type: unix.NFT_NG_RANDOM}}.ToPriority()}
	}
	if w, ok := unnumbered(chain, prefixSticky); ok {
		return r.sticky(w)
	}
	w, _ := unnumbered(chain, prefixLearn)
	return r.learn(w)
}

// place loads the frontend that a packet goes to, as an address or as a NodePort.
func (r *rules) place(node bool) nft.Rule {
	if node {
		return nft.NodePlace()
	}
	return r.Place()
}

func (r *rules) placeSize(node bool) int {
	if node {
		return 2
	}
	return r.PlaceSize()
}

// look makes the packet's priority the number that a map has for its place.
func (r *rules) look(set string, node bool) nft.Rule {
	return r.place(node).Map(on(node, set), 0).ToPriority()
}

// follow goes the way that the packet's priority says.
func follow(set string) nft.Rule { return nft.Priority(0).Go(set) }

// reset takes a number from the packet's priority that looks like one of ours
// and was put there by somebody else.
func reset() nft.Rule {
	return nft.Priority(0).BitsAre(uint32(wayMask), uint32(wayMagic)).Then(nft.Zero(0, 1)).ToPriority()
}

// isFound goes on to a chain for packets whose frontend was found.
func isFound(chain string) nft.Rule {
	return nft.Priority(0).BitsAre(uint32(wayMask), uint32(wayMagic)).Then(nft.Goto(chain))
}

// services finds the frontend of a connection's first packet.
func (r *rules) services() []nft.Rule {
	out := []nft.Rule{reset(), r.look(setFrontends, false), isFound(chainFound)}
	for _, here := range r.isNode() {
		out = append(out, here.Then(r.look(setFrontends, true)...))
	}
	return append(out, isFound(chainFoundNode))
}

// isNode goes on if the destination takes NodePorts: a rule for the addresses,
// and one for each range.
func (r *rules) isNode() []nft.Rule {
	out := []nft.Rule{r.Destination(0).In(setAddresses)}
	for _, p := range r.node.prefixes {
		out = append(out, r.Within(r.Destination(0), p))
	}
	return out
}

// found notes whether the connection is masqueraded, and goes its frontend's way.
func (r *rules) found(node bool) []nft.Rule {
	var out []nft.Rule
	for _, c := range []struct {
		snat  dataplane.SNAT
		chain string
	}{{dataplane.SNATNone, chainUnmark}, {dataplane.SNATNonPods, chainMarkOthers}, {dataplane.SNATNode, chainMarkNode}, {dataplane.SNATAll, chainMark}} {
		out = append(out, nft.Priority(0).BitsAre(uint32(snatMask), uint32(masquerading(c.snat))).Then(nft.Jump(c.chain)))
	}
	return append(out, nft.Priority(0).Masked(^uint32(snatMask)).Go(setWays), r.translate(r.picked(node, setEndpoints)))
}

// special takes frontends that are more than a pool.
func (r *rules) special(node bool) []nft.Rule {
	ask := chainAsk
	if node {
		ask = chainAskNode
	}
	restricted := r.place(node).In(on(node, setRestricted)).Then(r.Source(r.placeSize(node))...)
	out := []nft.Rule{
		restricted.NotIn(on(node, setSources)).Then(nft.Goto(chainDrop)),
		{nft.Jump(ask)},
		r.look(setSticky, node),
		follow(setStickyWays),
	}
	return append(out, r.pool(node, setOutside, setEndpoints)...)
}

// ask goes on to another chain for clients that are this node or its pods.
func (r *rules) ask(chain string) []nft.Rule {
	return append(r.FromPods(r.node.pods, nft.Goto(chain)), nft.SourceIsLocal().Then(nft.Goto(chain)))
}

// inside takes the node and its pods, if the frontend has a pool for them. If it
// has none, the priority is that of a special frontend still.
func (r *rules) inside(node bool) []nft.Rule {
	out := []nft.Rule{
		r.look(setInside, node),
		nft.Priority(0).BitsAre(uint32(kindMask), uint32(waySpecial)).Then(nft.Verdict(expr.VerdictReturn, "")),
		r.look(setSticky, node),
		follow(setStickyIn),
	}
	return append(out, r.pool(node, setInside, setInsideOnes)...)
}

// pool goes the way that a special place has in a map, and ends the evaluation.
// The priority of what is translated for a ServicePort with affinity tells learn
// whose client it is.
func (r *rules) pool(node bool, ways, endpoints string) []nft.Rule {
	id := r.PlaceSize() // behind the endpoint
	place := nft.Rule{nft.Protocol(id), nft.Port(id + 1)}
	if !node {
		place = r.Destination(id).Then(nft.Protocol(id+r.AddrSize()), nft.Port(id+r.AddrSize()+1))
	}
	keep := r.picked(node, endpoints).Then(place...).Then(
		&expr.Lookup{SourceRegister: nft.Reg(id), SetName: on(node, setIDs), DestRegister: nft.Reg(id), IsDestRegSet: true},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: nft.Reg(id), SourceRegister: true})
	return []nft.Rule{
		r.look(ways, node), follow(setPools),
		keep.Then(r.DNAT()), r.translate(r.picked(node, endpoints)),
		{nft.Verdict(expr.VerdictAccept, "")}, // the pool changed meanwhile
	}
}

// picked loads the endpoint whose index a pick chain has put into the priority.
// No rule of those chains uses the map of endpoints, because the kernel walks a
// map for each rule that begins to use it, and all such rules for each element
// that is added.
func (r *rules) picked(node bool, endpoints string) nft.Rule {
	return r.place(node).Then(nft.Priority(r.placeSize(node))...).Map(on(node, endpoints), 0)
}

// translate ends a rule that has loaded an endpoint.
func (r *rules) translate(rule nft.Rule) nft.Rule {
	const free = 12 // a register that no rule of ours uses otherwise
	return rule.Then(nft.Zero(free, 1), &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: nft.Reg(free), SourceRegister: true}, r.DNAT())
}

// sticky sends a client that was there before to its endpoint, if that is in
// the pool still, and else forgets it.
func (r *rules) sticky(w way) []nft.Rule {
	node, members := w&wayNode != 0, setMembers
	if w&wayIn != 0 {
		members = setMembersIn
	}
	id := r.look(setIDs, node)
	client := nft.Priority(0).Then(r.Source(1)...)
	return []nft.Rule{
		id,
		// Without this lookup an unknown client would get a meaningless number; what
		// it loads is not used, as the update of a known one keeps what it has.
		client.Map(setAffinity, 8).Then(r.remember(0, w)),
		client.Map(setAffinity, 0).ToPriority(),
		r.translate(r.place(node).Then(nft.Priority(r.placeSize(node))...).Map(on(node, members), 0)),
		id,
		client.Then(&expr.Dynset{SrcRegKey: nft.Reg(0), SrcRegData: nft.Reg(0), SetName: setAffinity, Operation: nft.DynsetDelete}),
	}
}

// learn remembers the endpoint that a client got: by a number that the packet
// alone gives.
func (r *rules) learn(w way) []nft.Rule {
	at := 1 + r.AddrSize()
	note := nft.Priority(0).Then(r.Source(1)...).Then(r.Destination(at)...).Then(nft.Port(at+r.AddrSize()),
		&expr.Hash{SourceRegister: nft.Reg(at), DestRegister: nft.Reg(at), Length: uint32(4 * (r.AddrSize() + 1)), Modulus: nft.NumberModulus, Seed: nft.NumberSeed, Type: expr.HashTypeJenkins},
		r.remember(at, w))
	return []nft.Rule{note, nft.Rule{nft.Zero(0, 1)}.ToPriority()}
}

// remember writes the number of a client's endpoint, or renews what is there.
func (r *rules) remember(at int, w way) expr.Any {
	keep := time.Duration(w&wayCount) * time.Second
	return &expr.Dynset{SrcRegKey: nft.Reg(0), SrcRegData: nft.Reg(at), SetName: setAffinity, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: keep}
}

// postrouting masquerades. What was not translated is none of ours, whatever its
// mark says.
func (r *rules) postrouting() []nft.Rule {
	out := []nft.Rule{
		nft.CtStatus().BitsAre(nft.StatusDNAT, 0).Then(nft.Verdict(expr.VerdictReturn, "")),
		r.Source(0).Then(r.Destination(r.AddrSize())...).In(setHairpin).Then(nft.Masquerade()),
	}
	if r.node.localhost {
		out = append(out, r.Loopback(r.Source(0)).Then(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: nft.Reg(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: nft.Reg(0), Data: nft.InterfaceName("lo")}, nft.Masquerade()))
	}
	// Cleared, so that no tunnel's outer packet is masqueraded too.
	return append(out, nft.Mark().AnyBit(r.node.mark).Then(nft.SetMark(r.node.mark, 0)...).Then(nft.Masquerade()))
}

// unserved judges what goes to addresses of Services and was translated by
// nobody. An address that the node has is the node's (a DNS cache binds one), and
// what a program took by TPROXY is not forwarded.
func (r *rules) unserved() []nft.Rule {
	var out []nft.Rule
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		out = append(out, nft.ProtocolIs(p).Then(r.Destination(0)...).In(setClusterIPs).Then(nft.DestinationIsNotLocal()...).Then(nft.Goto(chainReject)))
	}
	for _, p := range r.node.ranges {
		out = append(out, r.Within(r.Destination(0), p).Then(nft.DestinationIsNotLocal()...).Then(nft.Goto(chainDrop)))
	}
	return out
}

// invalid drops what conntrack takes for invalid and this node's endpoints
// sent: its source would not be translated back, and the client would answer
// with a reset (KUBE-PROXY §1.14).
func (r *rules) invalid() []nft.Rule {
	if r.node.liberal {
		return nil
	}
	rule := nft.CtState().AnyBit(expr.CtStateBitINVALID).Then(r.Source(0)...).Then(r.Source(r.AddrSize())...)
	return []nft.Rule{rule.In(setHairpin).Then(&expr.Counter{}, nft.Verdict(expr.VerdictDrop, ""))}
}

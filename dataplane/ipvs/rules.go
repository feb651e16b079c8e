package ipvs

import (
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// rules are the chains of one family's table. How many there are does not
// depend on how many Services there are.
type rules struct {
	*node
	nft.Words
}

func rulesFor(n *node) *rules { return &rules{node: n, Words: nft.Words{Family: n.family}} }

// form is how a packet names its place: by its own address, or as a NodePort.
type form uint8

const (
	byAddress   form = iota
	byNode           // one of the node's addresses
	byLocalhost      // 127.0.0.0/8
)

// forms returns those that packets from other hosts, or the node, can have.
func (r *rules) forms() []form {
	if r.localhost {
		return []form{byAddress, byNode, byLocalhost}
	}
	return []form{byAddress, byNode}
}

// constants returns the chains that no ServicePort changes.
func (r *rules) constants() map[string][]nft.Rule {
	chains := map[string][]nft.Rule{
		chainPrerouting:  {{nft.Jump(chainServices)}},
		chainOutput:      {resets(), nft.Rule{nft.Jump(chainServices)}},
		chainPostrouting: r.postrouting(),
		chainLocalIn:     {r.learnBy()},
		chainPicked:      {r.picked().Then(r.learnBy()...)},
		chainInput:       r.input(),
		chainForward:     {nft.Untranslated().Then(nft.Goto(chainLost))},
		chainLastInput:   {nft.Untranslated().Then(nft.Goto(chainLost))},
		chainLastOutput:  {nft.Untranslated().Then(nft.Goto(chainLost))},
		chainServices:    r.services(),
		chainLost:        r.lost(),
		chainLocalhost:   append(r.restricted(byLocalhost), append(r.dispatch(setStickyIn, byLocalhost), r.dispatch(setPicks, byLocalhost)...)...),
		chainPass:        r.pass(),
		chainMark:        {nft.SetMark(r.mark, r.mark)},
		chainMarkNonPods: append(r.FromPods(r.pods, nft.Goto(chainPass)), nft.Rule{nft.Goto(chainMark)}),
		chainMarkNode:    append(r.FromPods(r.pods, nft.Goto(chainPass)), nft.SourceIsLocal().Then(nft.Goto(chainMark)), nft.Rule{nft.Goto(chainPass)}),
		chainAsk:         append(r.FromPods(r.pods, nft.Goto(chainInside)), nft.SourceIsLocal().Then(nft.Goto(chainInside))),
		chainInside:      append(r.dispatch(setStickyIn, byAddress, byNode), r.dispatch(setPicks, byAddress, byNode)...),
		chainSpecial:     append([]nft.Rule{{nft.Jump(chainPass)}}, r.special()...),
		chainReject:      r.Reject(),
		chainDrop:        {nft.Rule{nft.Verdict(expr.VerdictDrop, "")}},
	}
	if !r.localhost {
		chains[chainLocalhost] = nil
		return chains
	}
	// Nobody but the node itself may use NodePorts on loopback.
	chains[chainOutput] = slices.Insert(chains[chainOutput], 0, r.Loopback(r.Destination(0)).Then(nft.Jump(chainLocalhost)))
	return chains
}

// resets lets the kernel's own answers pass. Where the node has no address to
// connect from, a client of its own connects from the Service address itself, and
// the reset that it gets would be rejected as well.
func resets() nft.Rule {
	return nft.CtState().AnyBit(expr.CtStateBitRELATED).Then(nft.Verdict(expr.VerdictReturn, ""))
}

// pass takes the masquerade bit away, which another program may have set. What the
// node itself sends from a Service's address, for want of one of its own, is
// masqueraded in any case.
func (r *rules) pass() []nft.Rule {
	return []nft.Rule{nft.SetMark(r.mark, 0), r.Source(0).In(setVIPs).Then(nft.SetMark(r.mark, r.mark)...)}
}

// services finds the frontend of a connection's first packet.
func (r *rules) services() []nft.Rule {
	var out []nft.Rule
	for _, as := range []form{byAddress, byNode} {
		for _, s := range frontendSets() {
			out = append(out, r.place(as).In(s.set).Then(nft.Goto(s.chain)))
		}
	}
	return out
}

// lost refuses other ports of Service addresses, and drops what goes to an address
// of the Service ranges that nobody has. An address that somebody bound on this
// node is meant to answer there (a DNS cache on the node does so).
//
// A Service address is refused as soon as its route is there, which comes behind the IPVS
// services: before that a client is to try again, and is dropped as for an address
// that nobody has. The set holds the address from the start, as no packet that the
// route brings may find a socket of the node.
func (r *rules) lost() []nft.Rule {
	var out []nft.Rule
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		rule := nft.ProtocolIs(p).Then(r.Destination(0)...).In(setVIPs)
		out = append(out, rule.Then(nft.DestinationIsLocal()...).Then(nft.Goto(chainReject)))
	}
	for _, p := range r.ranges {
		out = append(out, r.Within(r.Destination(0), p).Then(nft.DestinationIsNotLocal()...).Then(nft.Goto(chainDrop)))
	}
	return out
}

// special takes frontends that are more than an IPVS service.
func (r *rules) special() []nft.Rule {
	out := append(r.restricted(byAddress), r.restricted(byNode)...)
	out = append(out, r.dispatch(setMasquerade, byAddress, byNode)...)
	for _, as := range []form{byAddress, byNode} {
		out = append(out, r.place(as).In(setInside).Then(nft.Jump(chainAsk)))
	}
	out = append(out, r.dispatch(setSticky, byAddress, byNode)...)
	return append(out, r.dispatch(setEmpty, byAddress, byNode)...)
}

// restricted drops clients out of the source ranges of a frontend.
func (r *rules) restricted(as form) []nft.Rule {
	rule := r.place(as).In(setRestricted).Then(r.Source(r.PlaceSize())...)
	return []nft.Rule{rule.NotIn(setSources).Then(nft.Goto(chainDrop))}
}

// dispatch goes on to the chain that a map has for the packet's place.
func (r *rules) dispatch(set string, forms ...form) []nft.Rule {
	var out []nft.Rule
	for _, as := range forms {
		out = append(out, r.place(as).Go(set))
	}
	return out
}

// optional returns the rules of a chain that exists while something needs it.
func (r *rules) optional(chain string) []nft.Rule {
	if n := numberOf(chain, prefixPick); n > 0 {
		return r.pick(uint32(n))
	}
	if n := numberOf(chain, prefixStickyIn); n > 0 {
		return r.sticky(setMembersIn, time.Duration(n)*time.Second)
	}
	if n := numberOf(chain, prefixSticky); n > 0 {
		return r.sticky(setMembers, time.Duration(n)*time.Second)
	}
	return r.learn(time.Duration(numberOf(chain, prefixLearn)) * time.Second)
}

// pick sends a connection to one of n endpoints.
func (r *rules) pick(n uint32) []nft.Rule {
	var out []nft.Rule
	for _, as := range r.forms() {
		rule := r.place(as).Then(&expr.Numgen{Register: nft.Reg(r.PlaceSize()), Modulus: n, Type: unix.NFT_NG_RANDOM})
		out = append(out, rule.Map(setPicked, 0).Then(r.DNAT()))
	}
	return out
}

// sticky sends a client that was there before to its endpoint, if that is in
// the pool still, and else forgets it. The packet's priority, which nobody has
// looked at yet, is where a number waits from one rule to the next: what a rule
// keeps in registers over two lookups, nft cannot print. In the end it is the
// ServicePort's, for learn.
func (r *rules) sticky(members string, keep time.Duration) []nft.Rule {
	out := r.loadID()
	client := nft.Priority(0).Then(r.Source(1)...)
	// Without this lookup an unknown client would get a meaningless number; what
	// it loads is not used, as the update of a known one keeps what it has.
	out = append(out, client.Map(setAffinity, 8).Then(r.remember(0, keep)), setPriority(client, setAffinity))
	for _, as := range r.forms() {
		rule := r.place(as).Then(nft.Priority(r.PlaceSize())...)
		out = append(out, rule.Map(members, 0).Then(r.DNAT()))
	}
	out = append(out, r.loadID()...)
	return append(out, client.Then(&expr.Dynset{SrcRegKey: nft.Reg(0), SrcRegData: nft.Reg(0), SetName: setAffinity, Operation: nft.DynsetDelete}))
}

// learn remembers the endpoint that IPVS, or a pick, chose: by a number that
// the packet alone gives.
func (r *rules) learn(keep time.Duration) []nft.Rule {
	at := 1 + r.AddrSize()
	rule := nft.Priority(0).Then(r.Source(1)...).Then(r.Destination(at)...).Then(nft.Port(at+r.AddrSize()),
		&expr.Hash{SourceRegister: nft.Reg(at), DestRegister: nft.Reg(at), Length: uint32(4 * (r.AddrSize() + 1)), Modulus: nft.NumberModulus, Seed: nft.NumberSeed, Type: expr.HashTypeJenkins},
		r.remember(at, keep))
	return []nft.Rule{rule, {&expr.Immediate{Register: nft.Reg(0), Data: make([]byte, 4)}, &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: nft.Reg(0), SourceRegister: true}}}
}

// remember writes the number of a client's endpoint, or renews what is there.
func (r *rules) remember(at int, keep time.Duration) expr.Any {
	return &expr.Dynset{SrcRegKey: nft.Reg(0), SrcRegData: nft.Reg(at), SetName: setAffinity, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: keep}
}

// loadID makes the packet's priority the number of its ServicePort.
func (r *rules) loadID() []nft.Rule {
	var out []nft.Rule
	for _, as := range r.forms() {
		out = append(out, setPriority(r.place(as), setIDs))
	}
	return out
}

// learnBy goes on for packets that sticky gave the number of a ServicePort.
func (r *rules) learnBy() nft.Rule { return nft.Priority(0).Go(setLearn) }

// picked goes on for a first packet that was translated without IPVS.
func (r *rules) picked() nft.Rule {
	return nft.CtState().AnyBit(expr.CtStateBitNEW).Then(nft.CtStatus()...).AnyBit(nft.StatusDNAT)
}

// setPriority sets the packet's priority to what a map has.
func setPriority(place nft.Rule, set string) nft.Rule { return place.Map(set, 0).ToPriority() }

// postrouting masquerades: IPVS and the destination NAT are done.
func (r *rules) postrouting() []nft.Rule {
	out := []nft.Rule{r.learnBy()}
	hairpin := r.Source(0).Then(r.Destination(r.AddrSize())...).Then(nft.Protocol(2*r.AddrSize()), nft.Port(2*r.AddrSize()+1))
	out = append(out, hairpin.In(setHairpin).Then(nft.Masquerade()))
	if r.localhost {
		rule := r.Loopback(r.Source(0)).Then(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: nft.Reg(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: nft.Reg(0), Data: nft.InterfaceName("lo")})
		out = append(out, rule.Then(nft.Masquerade()))
	}
	// Cleared, so that no tunnel's outer packet is masqueraded too.
	return append(out, nft.Mark().AnyBit(r.mark).Then(nft.SetMark(r.mark, 0)...).Then(nft.Masquerade()))
}

// input keeps neighbours off 127.0.0.0/8, which route_localnet opens to them.
func (r *rules) input() []nft.Rule {
	if !r.localhost {
		return nil
	}
	return []nft.Rule{r.GuardLocalhost()}
}

// place loads where a packet goes into the first registers.
func (r *rules) place(as form) nft.Rule {
	to := r.Destination(0)
	switch as {
	case byNode:
		to = to.In(setAddresses)
	case byLocalhost:
		to = r.Loopback(to)
	}
	if as != byAddress {
		to = to.Then(nft.Zero(0, r.AddrSize()))
	}
	return to.Then(nft.Protocol(r.AddrSize()), nft.Port(r.AddrSize()+1))
}

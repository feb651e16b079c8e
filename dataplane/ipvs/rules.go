package ipvs

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// rules are the chains of one family's table. How many there are does not
// depend on how many Services there are.
type rules struct {
	*env
	family   dataplane.Family
	localnet localnet
}

// code is one rule.
type code []expr.Any

// baseChain is where the kernel enters the table.
type baseChain struct {
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	kind     nftables.ChainType
}

// baseChains are the ways in. IPVS takes packets between the destination and
// the source NAT of INPUT, and right after the destination NAT of OUTPUT; its
// packets then pass POSTROUTING, or the rest of INPUT where the endpoint is the node.
func baseChains() map[string]baseChain {
	return map[string]baseChain{
		chainPrerouting:  {nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT},
		chainOutput:      {nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT},
		chainPostrouting: {nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT},
		chainLocalIn:     {nftables.ChainHookInput, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT},
		chainPicked:      {nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 1), nftables.ChainTypeFilter},
		chainInput:       {nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter},
	}
}

// way is how a packet's place is told: by its own address, or as a NodePort.
type way uint8

const (
	byAddress   way = iota
	byNode          // one of the node's addresses
	byLocalhost     // 127.0.0.0/8
)

// ways are those that packets from other hosts, or the node, can take.
func (r *rules) ways() []way {
	if r.serveLocalhost() {
		return []way{byAddress, byNode, byLocalhost}
	}
	return []way{byAddress, byNode}
}

func (r *rules) serveLocalhost() bool { return r.localhost && r.family == dataplane.IPv4 }

// constants are the chains that no ServicePort changes.
func (r *rules) constants() map[string][]code {
	chains := map[string][]code{
		chainPrerouting:  {r.jump(chainServices)},
		chainOutput:      {r.lookup(r.source(0), setVIPs).then(jumpTo(chainMark)), r.jump(chainServices)},
		chainPostrouting: r.postrouting(),
		chainLocalIn:     {r.learnBy()},
		chainPicked:      {r.picked().then(r.learnBy()...)},
		chainInput:       r.input(),
		chainServices:    r.services(),
		chainLocalhost:   append(r.restricted(byLocalhost), append(r.dispatch(setStickyIn, byLocalhost), r.dispatch(setPicks, byLocalhost)...)...),
		chainPass:        nil,
		chainMark:        {r.setMark(r.mark, r.mark)},
		chainMarkNonPods: append(r.fromPods(verdict(expr.VerdictReturn, "")), code{gotoChain(chainMark)}),
		chainMarkNode:    append(r.fromPods(verdict(expr.VerdictReturn, "")), r.fromNode(gotoChain(chainMark))),
		chainAsk:         append(r.fromPods(gotoChain(chainInside)), r.fromNode(gotoChain(chainInside))),
		chainInside:      append(r.dispatch(setStickyIn, byAddress, byNode), r.dispatch(setPicks, byAddress, byNode)...),
		chainSpecial:     r.special(),
		chainReject:      r.reject(),
		chainDrop:        {code{verdict(expr.VerdictDrop, "")}},
	}
	if !r.serveLocalhost() {
		chains[chainLocalhost] = nil
		return chains
	}
	// Nobody but the node itself may use NodePorts on loopback.
	chains[chainOutput] = slices.Insert(chains[chainOutput], 0, r.loopback(r.destination(0)).then(jumpTo(chainLocalhost)))
	return chains
}

// services finds the frontend of a connection's first packet.
func (r *rules) services() []code {
	var out []code
	for _, w := range []way{byAddress, byNode} {
		for _, s := range frontendSets() {
			out = append(out, r.lookup(r.place(w), s.set).then(gotoChain(s.chain)))
		}
	}
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		out = append(out, r.protocolIs(p).then(r.lookup(r.destination(0), setVIPs)...).then(gotoChain(chainReject)))
	}
	for _, p := range r.ranges {
		if dataplane.FamilyOf(p.Addr()) == r.family && p.Bits() > 0 { // nobody drops all that there is
			// An address of the Service ranges that somebody bound on this node is meant
			// to answer there (a DNS cache on the node does so).
			out = append(out, r.within(r.destination(0), p).then(r.local(false, expr.CmpOpNeq)...).then(gotoChain(chainDrop)))
		}
	}
	return out
}

// special takes frontends that are more than an IPVS service.
func (r *rules) special() []code {
	out := append(r.restricted(byAddress), r.restricted(byNode)...)
	out = append(out, r.dispatch(setMasquerade, byAddress, byNode)...)
	for _, w := range []way{byAddress, byNode} {
		out = append(out, r.lookup(r.place(w), setInside).then(jumpTo(chainAsk)))
	}
	out = append(out, r.dispatch(setSticky, byAddress, byNode)...)
	return append(out, r.dispatch(setEmpty, byAddress, byNode)...)
}

// restricted drops clients out of the source ranges of a frontend.
func (r *rules) restricted(w way) []code {
	rule := r.lookup(r.place(w), setRestricted).then(r.source(r.placeSize())...)
	rule = append(rule, &expr.Lookup{SourceRegister: reg(0), SetName: setSources, Invert: true})
	return []code{rule.then(gotoChain(chainDrop))}
}

// dispatch goes on to the chain that a map has for the packet's place.
func (r *rules) dispatch(set string, ways ...way) []code {
	var out []code
	for _, w := range ways {
		out = append(out, r.place(w).then(jumpBy(set)))
	}
	return out
}

// numbered are the rules of a chain that comes and goes with its use.
func (r *rules) numbered(chain string) []code {
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
func (r *rules) pick(n uint32) []code {
	var out []code
	for _, w := range r.ways() {
		rule := append(r.place(w), &expr.Numgen{Register: reg(r.placeSize()), Modulus: n, Type: unix.NFT_NG_RANDOM})
		out = append(out, r.mapped(rule, setPicked, 0).then(r.dnat()...))
	}
	return out
}

// sticky sends a client that was there before to its endpoint, if that is in
// the pool still, and else forgets it. The packet's priority, which nobody has
// looked at yet, is where a number waits from one rule to the next: what a rule
// keeps in registers over two lookups, nft cannot print. In the end it is the
// ServicePort's, for learn.
func (r *rules) sticky(members string, keep time.Duration) []code {
	out := r.loadID()
	client := r.priority(0).then(r.source(1)...)
	// Without this lookup an unknown client would get a meaningless number; what
	// it loads is not used, as the update of a known one keeps what it has.
	known := r.mapped(client, setAffinity, 8)
	out = append(out, known.then(r.remember(0, keep)), client.then(r.setPriority(setAffinity)...))
	for _, w := range r.ways() {
		rule := r.place(w).then(r.priority(r.placeSize())...)
		out = append(out, r.mapped(rule, members, 0).then(r.dnat()...))
	}
	out = append(out, r.loadID()...)
	return append(out, client.then(&expr.Dynset{SrcRegKey: reg(0), SrcRegData: reg(0), SetName: setAffinity, Operation: dynsetDelete}))
}

// learn remembers the endpoint that IPVS, or a pick, chose: by a number that
// the packet alone gives.
func (r *rules) learn(keep time.Duration) []code {
	at := 1 + r.addrSize()
	rule := r.priority(0).then(r.source(1)...).then(r.destination(at)...).then(r.port(at+r.addrSize()),
		&expr.Hash{SourceRegister: reg(at), DestRegister: reg(at), Length: uint32(4 * (r.addrSize() + 1)), Modulus: numberModulus, Seed: numberSeed, Type: expr.HashTypeJenkins},
		r.remember(at, keep))
	return []code{rule, {&expr.Immediate{Register: reg(0), Data: make([]byte, 4)}, &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg(0), SourceRegister: true}}}
}

// remember writes the number of a client's endpoint, or renews what is there.
func (r *rules) remember(at int, keep time.Duration) expr.Any {
	return &expr.Dynset{SrcRegKey: reg(0), SrcRegData: reg(at), SetName: setAffinity, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: keep}
}

// loadID makes the packet's priority the number of its ServicePort.
func (r *rules) loadID() []code {
	var out []code
	for _, w := range r.ways() {
		out = append(out, r.place(w).then(r.setPriority(setIDs)...))
	}
	return out
}

// learnBy goes on for packets that sticky gave the number of a ServicePort.
func (r *rules) learnBy() code { return r.priority(0).then(jumpBy(setLearn)) }

// picked is a first packet that was translated without IPVS.
func (r *rules) picked() code {
	return code{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte(numberBytes(expr.CtStateBitNEW)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte(numberBytes(statusDNAT)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
}

const statusDNAT = 1 << 5 // IPS_DST_NAT

// setPriority sets the packet's priority to what a map has.
func (r *rules) setPriority(set string) code {
	return r.mapped(nil, set, 0).then(&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg(0), SourceRegister: true})
}

func (r *rules) priority(at int) code {
	return code{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg(at)}}
}

const dynsetDelete = 2 // NFT_DYNSET_OP_DELETE

// postrouting masquerades: IPVS and the destination NAT are done.
func (r *rules) postrouting() []code {
	out := []code{r.learnBy()}
	hairpin := r.source(0).then(r.destination(r.addrSize())...).then(r.protocol(2*r.addrSize()), r.port(2*r.addrSize()+1))
	out = append(out, append(r.lookup(hairpin, setHairpin), masquerade()))
	if r.serveLocalhost() {
		rule := append(r.loopback(r.source(0)), &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: interfaceName("lo")})
		out = append(out, append(rule, masquerade()))
	}
	// Cleared, so that no tunnel's outer packet is masqueraded too.
	marked := code{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte(numberBytes(r.mark)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
	return append(out, append(marked.then(r.setMark(r.mark, 0)...), masquerade()))
}

func masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

// input keeps neighbours off 127.0.0.0/8, which route_localnet opens to them.
func (r *rules) input() []code {
	if !r.serveLocalhost() {
		return nil
	}
	foreign := r.source(0)
	foreign = append(foreign,
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: []byte{127, 0, 0, 0}})
	rule := foreign.then(r.loopback(r.destination(0))...)
	fresh := expr.CtStateBitINVALID | expr.CtStateBitNEW | expr.CtStateBitUNTRACKED
	rule = append(rule, &expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte(numberBytes(fresh)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)})
	return []code{append(rule, verdict(expr.VerdictDrop, ""))}
}

// reject tells the client that nobody is there.
func (r *rules) reject() []code {
	const icmp, reset = 0, 1  // NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST
	const port4, port6 = 3, 4 // port unreachable
	if r.family == dataplane.IPv4 {
		return []code{{&expr.Reject{Type: icmp, Code: port4}}}
	}
	// A TCP client on this machine that is still inside connect() takes an ICMPv6
	// error only as a hint.
	return []code{append(r.protocolIs(dataplane.TCP), &expr.Reject{Type: reset}), {&expr.Reject{Type: icmp, Code: port6}}}
}

// fromPods are rules for what pods of this node send. In OUTPUT no packet has an
// input interface, so there none is a pod's by that.
func (r *rules) fromPods(then expr.Any) []code {
	var out []code
	for _, c := range r.pods.CIDRs {
		if dataplane.FamilyOf(c.Addr()) == r.family {
			out = append(out, r.within(r.source(0), c.Masked()).then(then))
		}
	}
	name := code{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)}}
	if r.pods.Interface != "" {
		out = append(out, name.then(&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: interfaceName(r.pods.Interface)}, then))
	}
	if r.pods.InterfacePrefix != "" {
		out = append(out, name.then(&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte(r.pods.InterfacePrefix)}, then))
	}
	return out
}

// fromNode is a rule for what the node itself sends.
func (r *rules) fromNode(then expr.Any) code { return r.local(true, expr.CmpOpEq).then(then) }

// The pieces of rules.

// reg is the number of a register of four bytes; there are 16.
func reg(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// then is a longer rule; the shorter one can be used again.
func (c code) then(more ...expr.Any) code { return append(slices.Clone(c), more...) }

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}
func jumpTo(chain string) expr.Any { return verdict(expr.VerdictJump, chain) }
func jumpBy(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg(0), SetName: set, IsDestRegSet: true}
}
func gotoChain(chain string) expr.Any { return verdict(expr.VerdictGoto, chain) }

func (r *rules) jump(chain string) code { return code{jumpTo(chain)} }

// addrSize and placeSize are in registers.
func (r *rules) addrSize() int {
	if r.family == dataplane.IPv4 {
		return 1
	}
	return 4
}

func (r *rules) placeSize() int { return r.addrSize() + 2 }

func (r *rules) source(at int) code {
	if r.family == dataplane.IPv4 {
		return code{&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}}
	}
	return code{&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}}
}

func (r *rules) destination(at int) code {
	if r.family == dataplane.IPv4 {
		return code{&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}}
	}
	return code{&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}}
}

func (r *rules) protocol(at int) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(at)}
}

func (r *rules) port(at int) expr.Any {
	return &expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func (r *rules) protocolIs(p dataplane.Protocol) code {
	return code{r.protocol(0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{byte(p)}}}
}

// place loads where a packet goes into the first registers.
func (r *rules) place(w way) code {
	to := r.destination(0)
	switch w {
	case byNode:
		to = r.lookup(to, setAddresses)
	case byLocalhost:
		to = r.loopback(to)
	}
	if w != byAddress {
		to = append(to, &expr.Immediate{Register: reg(0), Data: make([]byte, 4*r.addrSize())})
	}
	return to.then(r.protocol(r.addrSize()), r.port(r.addrSize()+1))
}

// lookup goes on if what is in the first registers is in a set.
func (r *rules) lookup(before code, set string) code {
	return before.then(&expr.Lookup{SourceRegister: reg(0), SetName: set})
}

// mapped is lookup in a map, and loads what that has.
func (r *rules) mapped(before code, set string, to int) code {
	return before.then(&expr.Lookup{SourceRegister: reg(0), SetName: set, DestRegister: reg(to), IsDestRegSet: true})
}

// dnat translates to the endpoint in the first registers.
func (r *rules) dnat() code {
	return code{&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(r.nfFamily()), RegAddrMin: reg(0), RegProtoMin: reg(r.addrSize())}}
}

func (r *rules) nfFamily() nftables.TableFamily { return tableFamily(r.family) }

func tableFamily(f dataplane.Family) nftables.TableFamily {
	if f == dataplane.IPv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// setMark sets some bits of the packet's mark.
func (r *rules) setMark(mask, bits uint32) code {
	return code{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: []byte(numberBytes(^mask)), Xor: []byte(numberBytes(bits))},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0), SourceRegister: true},
	}
}

// within goes on if the address that a rule has just loaded is in a range.
func (r *rules) within(address code, p netip.Prefix) code {
	size := 4 * r.addrSize()
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return address.then(
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: p.Masked().Addr().AsSlice()})
}

func (r *rules) loopback(address code) code {
	return r.within(address, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8))
}

// local compares whether the source or destination address is the node's own.
func (r *rules) local(source bool, op expr.CmpOp) code {
	return code{
		&expr.Fib{Register: reg(0), FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: reg(0), Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// interfaceName is a name as the kernel compares it.
func interfaceName(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

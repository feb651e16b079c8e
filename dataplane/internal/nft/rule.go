package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Rule is one rule: expressions that the kernel evaluates in order.
type Rule []expr.Any

// Then returns a longer rule; the shorter one can be used again.
func (r Rule) Then(more ...expr.Any) Rule { return append(slices.Clone(r), more...) }

// Signature returns a short hash that tells one rule from another.
func (r Rule) Signature(f dataplane.Family) (string, error) {
	h := sha256.New()
	for _, e := range r {
		b, err := expr.Marshal(byte(TableFamily(f)), e)
		if err != nil {
			return "", err
		}
		_, _ = h.Write(b) // never fails
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
}

// TableFamily returns the name that nftables has for an address family.
func TableFamily(f dataplane.Family) nftables.TableFamily {
	if f == dataplane.IPv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// Reg returns the number of a register of four bytes; there are 16.
func Reg(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// Words makes the pieces of rules for one address family. A piece loads into
// registers of four bytes or goes on only if something is so. A "place" is a
// destination as the sets know it: address, protocol and port.
type Words struct{ Family dataplane.Family }

// AddrSize returns how many registers an address takes.
func (w Words) AddrSize() int {
	if w.Family == dataplane.IPv4 {
		return 1
	}
	return 4
}

// PlaceSize returns how many registers a place takes.
func (w Words) PlaceSize() int { return w.AddrSize() + 2 }

// Source loads the packet's source address.
func (w Words) Source(at int) Rule { return w.network(at, 12, 8) }

// Destination loads the packet's destination address.
func (w Words) Destination(at int) Rule { return w.network(at, 16, 24) }

// network loads an address of the network header, at one offset for IPv4 and at another for IPv6.
func (w Words) network(at int, offset4, offset6 uint32) Rule {
	offset := offset6
	if w.Family == dataplane.IPv4 {
		offset = offset4
	}
	return Rule{&expr.Payload{DestRegister: Reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(4 * w.AddrSize())}}
}

// Protocol loads the transport protocol.
func Protocol(at int) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Reg(at)} }

// Port loads the destination port.
func Port(at int) expr.Any {
	return &expr.Payload{DestRegister: Reg(at), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// Zero loads count registers with zeros.
func Zero(at, count int) expr.Any {
	return &expr.Immediate{Register: Reg(at), Data: make([]byte, 4*count)}
}

// ProtocolIs goes on if the packet has a transport protocol.
func ProtocolIs(p dataplane.Protocol) Rule {
	return Rule{Protocol(0), &expr.Cmp{Op: expr.CmpOpEq, Register: Reg(0), Data: []byte{byte(p)}}}
}

// Place loads where the packet goes.
func (w Words) Place() Rule {
	return w.Destination(0).Then(Protocol(w.AddrSize()), Port(w.AddrSize()+1))
}

// NodePlace loads where the packet goes if that is a NodePort: protocol and port.
func NodePlace() Rule { return Rule{Protocol(0), Port(1)} }

// In goes on if what the first registers hold is in a set.
func (r Rule) In(set string) Rule { return r.Then(&expr.Lookup{SourceRegister: Reg(0), SetName: set}) }

// NotIn goes on if what the first registers hold is not in a set.
func (r Rule) NotIn(set string) Rule {
	return r.Then(&expr.Lookup{SourceRegister: Reg(0), SetName: set, Invert: true})
}

// Map looks up what the first registers hold in a map and loads what that has.
func (r Rule) Map(set string, to int) Rule {
	return r.Then(&expr.Lookup{SourceRegister: Reg(0), SetName: set, DestRegister: Reg(to), IsDestRegSet: true})
}

// Go goes to the chain that a map has for what the first registers hold.
func (r Rule) Go(set string) Rule {
	return r.Then(&expr.Lookup{SourceRegister: Reg(0), SetName: set, IsDestRegSet: true})
}

// DNAT translates the destination to the address and port in the first registers.
func (w Words) DNAT() expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(TableFamily(w.Family)), RegAddrMin: Reg(0), RegProtoMin: Reg(w.AddrSize())}
}

// Masquerade translates the source to an address of the outgoing device, with a random port.
func Masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

// Within goes on if the address that a rule has just loaded is in a range.
func (w Words) Within(address Rule, p netip.Prefix) Rule {
	size := 4 * w.AddrSize()
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return address.Then(
		&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg(0), Data: p.Masked().Addr().AsSlice()})
}

// Loopback goes on if the IPv4 address that a rule has just loaded is in 127.0.0.0/8.
func (w Words) Loopback(address Rule) Rule {
	return w.Within(address, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8))
}

// SourceIsLocal goes on if the source address is the node's own.
func SourceIsLocal() Rule { return isLocal(true, expr.CmpOpEq) }

// DestinationIsLocal goes on if the destination address is the node's own, a local route's too.
func DestinationIsLocal() Rule { return isLocal(false, expr.CmpOpEq) }

// DestinationIsNotLocal goes on if the destination address is not the node's own.
func DestinationIsNotLocal() Rule { return isLocal(false, expr.CmpOpNeq) }

func isLocal(source bool, op expr.CmpOp) Rule {
	return Rule{
		&expr.Fib{Register: Reg(0), FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: Reg(0), Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// AnyBit goes on if any of some bits is set in the number that a rule has just loaded.
func (r Rule) AnyBit(bits uint32) Rule { return r.bits(bits, expr.CmpOpNeq, 0) }

// BitsAre goes on if the number that a rule has just loaded has these bits under a mask.
func (r Rule) BitsAre(mask, bits uint32) Rule { return r.bits(mask, expr.CmpOpEq, bits) }

// Masked leaves only the bits of a mask of the number that a rule has just loaded.
func (r Rule) Masked(mask uint32) Rule {
	return r.Then(&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: Number(mask), Xor: make([]byte, 4)})
}

func (r Rule) bits(mask uint32, op expr.CmpOp, bits uint32) Rule {
	return r.Masked(mask).Then(
		&expr.Cmp{Op: op, Register: Reg(0), Data: Number(bits)})
}

// CtState loads the state of the packet's connection, as one of expr.CtStateBit….
func CtState() Rule { return Rule{&expr.Ct{Key: expr.CtKeySTATE, Register: Reg(0)}} }

// StatusDNAT is the bit of a connection's status that says that its destination
// was translated (IPS_DST_NAT).
const StatusDNAT = 1 << 5

// CtStatus loads the status of the packet's connection.
func CtStatus() Rule { return Rule{&expr.Ct{Key: expr.CtKeySTATUS, Register: Reg(0)}} }

// Untranslated goes on for new connections whose destination nobody has translated.
func Untranslated() Rule {
	return CtState().AnyBit(expr.CtStateBitNEW).Then(CtStatus()...).BitsAre(StatusDNAT, 0)
}

// DynsetDelete is NFT_DYNSET_OP_DELETE, which package unix lacks.
const DynsetDelete = 2

// Priority loads the packet's priority.
func Priority(at int) Rule { return Rule{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: Reg(at)}} }

// Mark loads the packet's mark.
func Mark() Rule { return Rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg(0)}} }

// SetMark sets the bits of a mask in the packet's mark.
func SetMark(mask, bits uint32) Rule {
	return Mark().Then(
		&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: Number(^mask), Xor: Number(bits)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg(0), SourceRegister: true})
}

// ToPriority makes the packet's priority what the first register holds.
func (r Rule) ToPriority() Rule {
	return r.Then(&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: Reg(0), SourceRegister: true})
}

// Verdict ends a rule.
func Verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

// Jump goes to a chain and comes back.
func Jump(chain string) expr.Any { return Verdict(expr.VerdictJump, chain) }

// Goto goes to a chain and does not come back.
func Goto(chain string) expr.Any { return Verdict(expr.VerdictGoto, chain) }

// Reject returns the rules that tell a client that nobody is there. TCP gets a
// reset: the kernel sends few ICMP errors to one host in a second, and a client
// on this machine that is still inside connect() takes an ICMPv6 error only as a
// hint.
func (w Words) Reject() []Rule {
	const icmp, reset = 0, 1 // NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST
	unreachable := uint8(4)  // the port, for ICMPv6
	if w.Family == dataplane.IPv4 {
		unreachable = 3
	}
	return []Rule{ProtocolIs(dataplane.TCP).Then(&expr.Reject{Type: reset}), {&expr.Reject{Type: icmp, Code: unreachable}}}
}

// FromPods returns the rules for what this node's pods send. In OUTPUT no packet
// has an input interface, so there none is a pod's by that.
func (w Words) FromPods(pods dataplane.LocalPods, then expr.Any) []Rule {
	var out []Rule
	for _, c := range pods.CIDRs {
		if dataplane.FamilyOf(c.Addr()) == w.Family {
			out = append(out, w.Within(w.Source(0), c.Masked()).Then(then))
		}
	}
	name := Rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: Reg(0)}}
	if pods.Interface != "" {
		out = append(out, name.Then(&expr.Cmp{Op: expr.CmpOpEq, Register: Reg(0), Data: InterfaceName(pods.Interface)}, then))
	}
	if pods.InterfacePrefix != "" {
		out = append(out, name.Then(&expr.Cmp{Op: expr.CmpOpEq, Register: Reg(0), Data: []byte(pods.InterfacePrefix)}, then))
	}
	return out
}

// GuardLocalhost keeps neighbours off 127.0.0.0/8, which route_localnet opens to them.
func (w Words) GuardLocalhost() Rule {
	foreign := w.Source(0).Then(
		&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg(0), Data: []byte{127, 0, 0, 0}})
	fresh := expr.CtStateBitINVALID | expr.CtStateBitNEW | expr.CtStateBitUNTRACKED
	return w.Loopback(w.Destination(0)).Then(foreign...).Then(CtState().AnyBit(fresh)...).Then(Verdict(expr.VerdictDrop, ""))
}

// InterfaceName returns a device's name as the kernel compares it.
func InterfaceName(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

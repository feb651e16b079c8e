package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// marks are the bits of the packet mark that carry a decision from the nat
// table, which cannot masquerade a packet that arrives, to the hook that can.
type marks struct {
	masquerade uint32
}

// The marks of packets that the nat table, which cannot drop them, leaves to the
// hooks that can. A verdict is a number of nine bits. Other programs set and clear
// bits of their own before it is carried out, and accept by some, so that none of
// the nine is one of theirs: Calico has the upper 16, Cilium 0x0f00, the AWS CNI
// 0x80, kube-proxy and kubelets 0x4000 and 0x8000.
const (
	markMask    uint32 = 0x307f
	markDrop    uint32 = 0x305a
	markReject         = markDrop | 1
	markVerdict        = markMask &^ 1 // the bits that both have
)

// makeMarks makes Config.MasqueradeBit a mark.
func makeMarks(bit int) (marks, error) {
	if bit < 0 || bit > 31 {
		return marks{}, fmt.Errorf("masquerade bit %d is not within 0 to 31", bit)
	}
	return marks{masquerade: 1 << bit}, nil
}

// set is the target that sets some bits within a mask.
func setMark(bits, mask uint32) string {
	return fmt.Sprintf("-j MARK --set-xmark %#x/%#x\n", bits, mask)
}

// doom is the target that gives a packet a verdict, and takes the masquerade bit
// from it.
func doom(verdict, masquerade uint32) string { return setMark(verdict, markMask|masquerade) }

// ifMark is the match for some bits within a mask.
func ifMark(bits, mask uint32) string { return fmt.Sprintf("-m mark --mark %#x/%#x ", bits, mask) }

// env is what rules depend on beside the ServicePorts. Two equal ones give
// equal rules.
type env struct {
	family      dataplane.Family
	marks       marks
	randomFully bool // MASQUERADE knows --random-fully
	dropInvalid bool // KUBE-PROXY §1.14
	localnet    localnet
	pods        []string // matches, each with a space behind it: any of them is a pod's packet
	addresses   []netip.Prefix
	ranges      []netip.Prefix // that ClusterIPs come from
}

func (e *env) equal(o *env) bool {
	return e.family == o.family && e.marks == o.marks && e.randomFully == o.randomFully && e.dropInvalid == o.dropInvalid &&
		e.localnet == o.localnet && slices.Equal(e.pods, o.pods) && slices.Equal(e.addresses, o.addresses) && slices.Equal(e.ranges, o.ranges)
}

// see takes over what a Snapshot says of the node.
func (e *env) see(s *dataplane.Snapshot, localhost bool) {
	e.pods = podMatches(s.Node.LocalPods, e.family)
	e.ranges = ofFamily(s.ServiceCIDRs, e.family)
	e.addresses = nil
	for _, a := range ofFamily(s.Node.NodePorts, e.family) {
		if a.Addr().IsLoopback() && (!localhost || e.family == dataplane.IPv6) {
			continue // no kernel forwards from ::1
		}
		e.addresses = append(e.addresses, inDigits(a)...)
	}
	slices.SortFunc(e.addresses, netip.Prefix.Compare)
	e.addresses = slices.Compact(e.addresses)
}

// check finds what cannot be written as rules.
func (e *env) check(l dataplane.LocalPods) error {
	for _, name := range []string{l.Interface, l.InterfacePrefix} {
		if strings.ContainsAny(name, " \t\r\n\"'\\") {
			return fmt.Errorf("interface name %q of the local pods is not one", name)
		}
	}
	return nil
}

func isLoopback(p netip.Prefix) bool { return p.Addr().IsLoopback() }

func ofFamily(prefixes []netip.Prefix, f dataplane.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if dataplane.FamilyOf(p.Addr()) == f {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// podMatches tells packets of the node's pods. None is negated: "not from this
// interface" is true of what the node itself sends under legacy iptables and
// false under older nft, so rules ask for pods first and go on with the others.
// In OUTPUT no packet has an input interface, so there none is a pod's; by
// address, one that the node sends from within the range is.
func podMatches(l dataplane.LocalPods, f dataplane.Family) []string {
	var out []string
	for _, c := range ofFamily(l.CIDRs, f) {
		out = append(out, fromPrefix(c))
	}
	if l.Interface != "" {
		out = append(out, "-i "+l.Interface+" ")
	}
	if l.InterfacePrefix != "" {
		out = append(out, "-i "+l.InterfacePrefix+"+ ")
	}
	return out
}

// fromPrefix matches a source prefix; iptables writes none for all addresses.
func fromPrefix(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-s " + p.Masked().String() + " "
}

// masquerade is the rule that marks the packets whose source is masqueraded.
func (e *env) masquerade(s dataplane.SNAT) string {
	switch s {
	case dataplane.SNATNode:
		return "-j " + chainMasqNode + "\n"
	case dataplane.SNATNonPods:
		return "-j " + chainMasqNonPods + "\n"
	case dataplane.SNATAll:
		return setMark(e.marks.masquerade, e.marks.masquerade)
	default:
		return ""
	}
}

// jump is a rule of a built-in chain.
type jump struct {
	table, from, to string
	why             string
}

func (j jump) rule() string {
	return strings.TrimPrefix(comment("switchyard: "+j.why), " ") + " -j " + j.to
}

// jumps are Switchyard's only rules outside its own chains.
func jumps() []jump {
	return []jump{
		{tableFilter, "INPUT", chainInput, "verdicts, health checks"},
		{tableFilter, "FORWARD", chainForward, "verdicts, Service traffic"},
		{tableFilter, "OUTPUT", chainOutput, "verdicts"},
		{tableNAT, "PREROUTING", chainServices, "Services"},
		{tableNAT, "OUTPUT", chainServices, "Services"},
		{tableNAT, "POSTROUTING", chainPostrouting, "masquerade"},
	}
}

// natConstants are the chains of the nat table that no ServicePort changes.
func natConstants(e *env) []chain {
	bit := e.marks.masquerade
	mark := setMark(bit, bit)
	var pods strings.Builder
	for _, p := range e.pods {
		pods.WriteString(p + "-j RETURN\n")
	}
	masquerade := "-j MASQUERADE"
	if e.randomFully {
		masquerade += " --random-fully"
	}
	trees := "-j " + chainFrontends + "\n-j " + chainAddresses + "\n"
	return []chain{
		// A bit that another program set says nothing of our packets, and is put back
		// into those that are not ours.
		{name: chainMarked, rank: rankHook, body: setMark(0, bit) + trees + mark},
		{name: chainServices, rank: rankHook, body: ifMark(bit, bit) + "-g " + chainMarked + "\n" + trees},
		// ACCEPT ends this table alone: no later rule shall redirect what is doomed.
		{name: chainReject, body: doom(markReject, bit) + "-j ACCEPT\n"},
		{name: chainDrop, body: doom(markDrop, bit) + "-j ACCEPT\n"},
		{name: chainMasqNonPods, body: pods.String() + mark},
		{name: chainMasqNode, body: pods.String() + "-m addrtype --src-type LOCAL " + mark},
		{name: chainPostrouting, rank: rankHook, body: "-m conntrack ! --ctstate DNAT -j RETURN\n-j " + chainHairpin + "\n" +
			fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN\n", bit, bit) +
			// Cleared, so that no tunnel's outer packet is masqueraded too.
			setMark(bit, 0) + masquerade + "\n"},
	}
}

// filterConstants are the chains of the filter table that no ServicePort changes.
func filterConstants(e *env) []chain {
	bit := e.marks.masquerade
	verdict := ifMark(markDrop&markVerdict, markVerdict) + "-m conntrack --ctstate NEW -j " + chainVerdict + "\n"
	// Here nobody can translate any more, so that it is known whose packets are lost.
	lost := "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j " + chainLost + "\n"
	reject := "-j REJECT --reject-with icmp-port-unreachable\n"
	if e.family == dataplane.IPv6 {
		// A client on this machine is still inside connect() when the ICMP message
		// comes, and TCP then only notes it: over IPv6 (seen on 6.18) the client
		// learns of it after a second, when its next SYN is refused. A reset counts
		// at once.
		reject = "-p tcp -j REJECT --reject-with tcp-reset\n-j REJECT --reject-with icmp6-port-unreachable\n"
	}
	invalid := ""
	if e.dropInvalid {
		invalid = "-m conntrack --ctstate INVALID -j DROP\n"
	}
	var ranges strings.Builder
	for _, r := range e.ranges {
		if r.Bits() > 0 { // nobody drops all that there is
			ranges.WriteString("-d " + r.String() + " -j DROP\n")
		}
	}
	return []chain{
		{name: chainRefuse, body: reject},
		{name: chainVerdict, body: ifMark(markReject, markMask) + "-g " + chainRefuse + "\n-j DROP\n"},
		// An address that somebody bound on this node is meant to answer there (a DNS
		// cache on the node does so).
		{name: chainLost, rank: rankHook, body: "-m addrtype --dst-type LOCAL -j RETURN\n-j " + chainVIPs + "\n" + ranges.String()},
		{name: chainInput, rank: rankHook, body: verdict + e.localnet.rule() + "-p tcp -j " + chainHealth + "\n"},
		{name: chainForward, rank: rankHook, body: invalid + verdict + lost +
			ifMark(bit, bit) + "-m conntrack --ctstate DNAT -j ACCEPT\n" +
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"},
		{name: chainOutput, rank: rankHook, body: verdict + lost},
	}
}

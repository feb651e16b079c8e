package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

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

// setMark returns the target that sets some bits within a mask.
func setMark(bits, mask uint32) string {
	return fmt.Sprintf("-j MARK --set-xmark %#x/%#x\n", bits, mask)
}

// doom returns the target that gives a packet a verdict, and takes the masquerade bit
// from it.
func doom(verdict, masquerade uint32) string { return setMark(verdict, markMask|masquerade) }

// ifMark returns the match for some bits within a mask.
func ifMark(bits, mask uint32) string { return fmt.Sprintf("-m mark --mark %#x/%#x ", bits, mask) }

// node is what rules depend on apart from the ServicePorts. Two equal ones give
// equal rules.
type node struct {
	family      dataplane.Family
	bit         uint32 // of the packet mark: masquerade
	randomFully bool   // MASQUERADE knows --random-fully
	dropInvalid bool   // KUBE-PROXY §1.14
	localnet    localnet.State
	pods        []string // matches, each with a space behind it: any of them is a pod's packet
	addresses   []netip.Prefix
	ranges      []netip.Prefix // that ClusterIPs are from
}

func (n *node) equal(o *node) bool {
	return n.family == o.family && n.bit == o.bit && n.randomFully == o.randomFully && n.dropInvalid == o.dropInvalid &&
		n.localnet == o.localnet && slices.Equal(n.pods, o.pods) && slices.Equal(n.addresses, o.addresses) && slices.Equal(n.ranges, o.ranges)
}

// see takes over what a Snapshot says of the node. It fails if that cannot be written
// as rules.
func (n *node) see(s *dataplane.Snapshot, localhost bool) error {
	l := s.Node.LocalPods
	for _, name := range []string{l.Interface, l.InterfacePrefix} {
		if strings.ContainsAny(name, " \t\r\n\"'\\") {
			return fmt.Errorf("interface name %q of the local pods is not one", name)
		}
	}
	n.pods = podMatches(l, n.family)
	n.ranges = ofFamily(s.ServiceCIDRs, n.family)
	n.addresses = nil
	for _, a := range ofFamily(s.Node.NodePorts, n.family) {
		if isLoopback(a) && (!localhost || n.family == dataplane.IPv6) {
			continue // no kernel forwards from ::1
		}
		n.addresses = append(n.addresses, inDigits(a)...)
	}
	slices.SortFunc(n.addresses, netip.Prefix.Compare)
	n.addresses = slices.Compact(n.addresses)
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

// podMatches returns matches for packets of the node's pods. None is negated: "not from this
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

// fromPrefix returns the match for a source prefix; iptables writes none for all addresses.
func fromPrefix(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-s " + p.Masked().String() + " "
}

// masquerade returns the rule that marks the packets whose source is masqueraded.
func (n *node) masquerade(s dataplane.SNAT) string {
	switch s {
	case dataplane.SNATNode:
		return "-j " + chainMasqNode + "\n"
	case dataplane.SNATNonPods:
		return "-j " + chainMasqNonPods + "\n"
	case dataplane.SNATAll:
		return setMark(n.bit, n.bit)
	default:
		return ""
	}
}

// natConstants returns the chains of the nat table that no ServicePort changes.
func natConstants(n *node) []restore.Chain {
	bit := n.bit
	mark := setMark(bit, bit)
	var pods strings.Builder
	for _, p := range n.pods {
		pods.WriteString(p + "-j RETURN\n")
	}
	masquerade := "-j MASQUERADE"
	if n.randomFully {
		masquerade += " --random-fully"
	}
	trees := "-j " + chainFrontends + "\n-j " + chainAddresses + "\n"
	return []restore.Chain{
		// A bit that another program set says nothing of our packets, and is put back
		// into those that are not ours.
		{Name: chainMarked, Rank: rankHook, Body: setMark(0, bit) + trees + mark},
		{Name: chainServices, Rank: rankHook, Body: ifMark(bit, bit) + "-g " + chainMarked + "\n" + trees},
		// ACCEPT ends this table alone: no later rule shall redirect what is doomed.
		{Name: chainReject, Body: doom(markReject, bit) + "-j ACCEPT\n"},
		{Name: chainDrop, Body: doom(markDrop, bit) + "-j ACCEPT\n"},
		{Name: chainMasqNonPods, Body: pods.String() + mark},
		{Name: chainMasqNode, Body: pods.String() + "-m addrtype --src-type LOCAL " + mark},
		{Name: chainPostrouting, Rank: rankHook, Body: "-m conntrack ! --ctstate DNAT -j RETURN\n-j " + chainHairpin + "\n" +
			fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN\n", bit, bit) +
			// Cleared, so that no tunnel's outer packet is masqueraded too.
			setMark(bit, 0) + masquerade + "\n"},
	}
}

// filterConstants returns the chains of the filter table that no ServicePort changes.
func filterConstants(n *node) []restore.Chain {
	bit := n.bit
	verdict := ifMark(markDrop&markVerdict, markVerdict) + "-m conntrack --ctstate NEW -j " + chainVerdict + "\n"
	// Here nobody can translate any more, so that it is known whose packets are lost.
	lost := "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j " + chainLost + "\n"
	reject := "-j REJECT --reject-with icmp-port-unreachable\n"
	if n.family == dataplane.IPv6 {
		// A client on this machine is still inside connect() when the ICMP message
		// comes, and TCP then only notes it: over IPv6 (seen on 6.18) the client
		// learns of it after a second, when its next SYN is refused. A reset counts
		// at once.
		reject = "-p tcp -j REJECT --reject-with tcp-reset\n-j REJECT --reject-with icmp6-port-unreachable\n"
	}
	invalid := ""
	if n.dropInvalid {
		invalid = "-m conntrack --ctstate INVALID -j DROP\n"
	}
	var ranges strings.Builder
	for _, r := range n.ranges {
		if r.Bits() > 0 { // nobody drops all that there is
			ranges.WriteString("-d " + r.String() + " -j DROP\n")
		}
	}
	return []restore.Chain{
		{Name: chainRefuse, Body: reject},
		{Name: chainVerdict, Body: ifMark(markReject, markMask) + "-g " + chainRefuse + "\n-j DROP\n"},
		// An address that somebody bound on this node is meant to answer there (a DNS
		// cache on the node does so).
		{Name: chainLost, Rank: rankHook, Body: "-m addrtype --dst-type LOCAL -j RETURN\n-j " + chainVIPs + "\n" + ranges.String()},
		{Name: chainInput, Rank: rankHook, Body: verdict + guard(n.localnet) + "-p tcp -j " + chainHealth + "\n"},
		{Name: chainForward, Rank: rankHook, Body: invalid + verdict + lost +
			ifMark(bit, bit) + "-m conntrack --ctstate DNAT -j ACCEPT\n" +
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"},
		{Name: chainOutput, Rank: rankHook, Body: verdict + lost},
	}
}

// guard returns the rule that drops what reaches 127.0.0.0/8 from outside by no doing of
// ours while the kernel routes it. Its comment says who switched that on.
func guard(s localnet.State) string {
	if s == localnet.Off {
		return ""
	}
	note := ""
	if s == localnet.Switched {
		note = restore.Comment(strings.TrimSpace(s.Note()))
	}
	return "! -s 127.0.0.0/8 -d 127.0.0.0/8" + note + " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
}

// localnetOf finds in what was read back what an earlier process did.
func localnetOf(read tables) localnet.State {
	var guards []string
	for rule := range strings.Lines(read[restore.Filter].Chains[chainInput]) {
		if match, _, ok := strings.Cut(rule, "-m conntrack "); ok && strings.Contains(match, "-d 127.0.0.0/8 ") {
			guards = append(guards, strings.TrimRight(strings.ReplaceAll(match, `"`, " "), " "))
		}
	}
	return localnet.FromComments(guards)
}

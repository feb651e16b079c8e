package nftables

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// tableName is our table, one in each family. Nothing is outside of it.
const tableName = "switchyard"

// Sets and maps that are there twice. A place is address, protocol and port; in
// those with the prefix "node-" it is a NodePort: protocol and port.
const (
	setFrontends  = "frontends"        // place → way
	setEndpoints  = "endpoints"        // place, index → endpoint
	setOutside    = "outside"          // special place → way of clients from outside
	setInside     = "inside"           // special place → way of the node and its pods
	setInsideOnes = "inside-endpoints" // special place, index → endpoint for the node and its pods
	setRestricted = "restricted"       // places with source ranges
	setSources    = "sources"          // place, client range
	setSticky     = "sticky"           // place with affinity → way
	setIDs        = "affinity-ids"     // place → number of its ServicePort
	setMembers    = "affinity-pool"    // place, number of an endpoint → endpoint
	setMembersIn  = "affinity-inside"  // the same for the node and its pods
)

// The other sets and maps.
const (
	setWays       = "ways"           // way → chain
	setPools      = "pools"          // way → chain, but for special ones
	setStickyWays = "sticky-ways"    // way → chain that looks for a client's endpoint
	setStickyIn   = "sticky-inside"  // the same for the node and its pods
	setLearn      = "learn"          // number of a ServicePort → chain that notes a client's endpoint
	setAffinity   = "affinity"       // number of a ServicePort, client → number of its endpoint; packets write it
	setClusterIPs = "cluster-ips"    // addresses
	setHairpin    = "hairpin"        // this node's endpoints, each address twice
	setAddresses  = "node-addresses" // that take NodePorts
)

// on returns the name of a set for addresses or for NodePorts.
func on(node bool, set string) string {
	if node {
		return "node-" + set
	}
	return set
}

// Chains. The first group are base chains.
const (
	chainPrerouting  = "prerouting"
	chainOutput      = "output"
	chainAgain       = "again-prerouting"
	chainAgainOut    = "again-output"
	chainPostrouting = "postrouting"
	chainLastOutput  = "last-output"
	chainForward     = "forward"
	chainInput       = "input"
	chainLearn       = "learn-prerouting" // while a ServicePort has affinity
	chainLearnOut    = "learn-output"     // the same

	chainServices    = "services"
	chainFound       = "frontend"
	chainFoundNode   = "frontend-node" // the same for NodePorts, as all that end so
	chainLocalhost   = "localhost"
	chainSpecial     = "special"
	chainSpecialNode = "special-node"
	chainAsk         = "ask-inside"
	chainAskNode     = "ask-inside-node"
	chainFromIn      = "from-inside"
	chainFromInNode  = "from-inside-node"
	chainMark        = "masquerade-all"
	chainMarkOthers  = "masquerade-nonpods"
	chainMarkNode    = "masquerade-node"
	chainUnmark      = "masquerade-none"
	chainUnserved    = "unserved"
	chainReject      = "do-reject"
	chainDrop        = "do-drop"

	prefixPick   = "pick-"   // pick-N: the index of one of N endpoints
	prefixSticky = "sticky-" // sticky-[inside-][node-]S: the endpoint of the last S seconds
	prefixLearn  = "learn-"  // learn-S: remember the endpoint for S seconds
)

// affinityClients is how many clients a family remembers the endpoint of.
const affinityClients = 1 << 18

// last is the priority of the chain that judges what the node itself sends and
// nobody translated: it comes after all others of type nat at its hook.
const last = nftables.ChainPriority(math.MaxInt32)

// early is the priority of the chain that judges what the node forwards, where nobody
// can translate any more. It comes before the firewalls of others: what these drop
// would not be rejected.
const early = nftables.ChainPriority(-110)

// again is the priority of the chains that look a second time. A packet on its
// way through the rules may meet two states of the table: it reads a number in
// one and what the number stands for in the next, where a chain that came with
// it is still empty for this packet. Before Linux 6.17 even one lookup may miss
// an element that is being replaced. The second look is in the new state.
const again = nftables.ChainPriority(-99) // dstnat + 1

// spec returns the table of a family.
func spec(f dataplane.Family) nft.Spec {
	addr, number, verdict := nftables.TypeIPAddr, nftables.TypeClassID, nftables.TypeVerdict
	if f == dataplane.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	concat := nftables.MustConcatSetType // a handful of types never are too many
	endpoint := concat(addr, port)
	at := func(node bool, more ...nftables.SetDatatype) nftables.SetDatatype {
		place := []nftables.SetDatatype{addr, proto, port}
		if node {
			place = place[1:]
		}
		return concat(append(place, more...)...)
	}
	var sets []nft.Set
	twice := func(name string, data nftables.SetDatatype, more ...nftables.SetDatatype) {
		for _, node := range []bool{false, true} {
			sets = append(sets, nft.Set{Name: on(node, name), Key: at(node, more...), Data: data, Intervals: name == setSources})
		}
	}
	once := func(s nft.Set) { sets = append(sets, s) }
	none := nftables.SetDatatype{}
	// What is led to comes before what leads there.
	for _, name := range []string{setEndpoints, setInsideOnes, setMembers, setMembersIn} {
		twice(name, endpoint, number)
	}
	twice(setSources, none, addr)
	twice(setRestricted, none)
	once(nft.Set{Name: setAffinity, Key: concat(number, addr), Data: number, Clients: affinityClients})
	for _, name := range []string{setLearn, setStickyWays, setStickyIn, setPools, setWays} {
		once(nft.Set{Name: name, Key: number, Data: verdict, Returns: true})
	}
	twice(setIDs, number)
	twice(setSticky, number)
	once(nft.Set{Name: setHairpin, Key: concat(addr, addr)})
	twice(setOutside, number)
	twice(setInside, number)
	twice(setFrontends, number)
	once(nft.Set{Name: setClusterIPs, Key: addr})
	once(nft.Set{Name: setAddresses, Key: addr})
	return nft.Spec{Name: tableName, Hooks: hooks(), Sets: sets}
}

// hooks returns the base chains. The kernel runs chains of type nat for the first
// packet of a connection only, and stops at the first that translates.
func hooks() map[string]nft.Hook {
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	second := nftables.ChainPriorityRef(again)
	return map[string]nft.Hook{
		chainPrerouting:  {Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest, Type: nat},
		chainOutput:      {Hook: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest, Type: nat},
		chainAgain:       {Hook: nftables.ChainHookPrerouting, Priority: second, Type: nat},
		chainAgainOut:    {Hook: nftables.ChainHookOutput, Priority: second, Type: nat},
		chainPostrouting: {Hook: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Type: nat},
		chainLastOutput:  {Hook: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(last), Type: nat},
		chainForward:     {Hook: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(early), Type: filter},
		chainInput:       {Hook: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Type: filter},
		chainLearn:       {Hook: nftables.ChainHookPrerouting, Priority: second, Type: filter},
		chainLearnOut:    {Hook: nftables.ChainHookOutput, Priority: second, Type: filter},
	}
}

// way is where a connection goes, as a number that fits a packet's priority: a
// kind, whose clients are masqueraded, flags, and a count.
type way uint32

// The kinds of way.
const (
	wayPick    way = iota << 24 // one of so many endpoints
	waySpecial                  // more than that is to be looked at
	waySticky                   // the client's endpoint of so many seconds ago
	wayReject
	wayDrop
)

const (
	// wayMagic, under wayMask, tells our numbers from those of others.
	wayMagic way = 5 << 28
	wayMask  way = 15 << 28
	kindMask way = 15 << 24
	wayNode  way = 1 << 23 // about a NodePort; of special and sticky ways
	wayIn    way = 1 << 22 // of clients inside; of sticky ways
	snatMask way = 3 << snatShift
	wayCount way = 1<<snatShift - 1 // the most that a way counts
)

// snatShift is where a way says whose source address is masqueraded.
const snatShift = 18

func masquerading(s dataplane.SNAT) way { return way(s) << snatShift }

// chain returns the chain that goes a way.
func (w way) chain() string {
	switch w & kindMask {
	case waySpecial:
		if w&wayNode != 0 {
			return chainSpecialNode
		}
		return chainSpecial
	case waySticky:
		return w.numbered(prefixSticky)
	case wayReject:
		return chainReject
	case wayDrop:
		return chainDrop
	}
	return w.numbered(prefixPick)
}

// numbered returns the name of a chain that exists while something leads to it.
func (w way) numbered(prefix string) string {
	if w&wayIn != 0 {
		prefix += "inside-"
	}
	if w&wayNode != 0 {
		prefix += "node-"
	}
	return fmt.Sprintf("%s%d", prefix, w&wayCount)
}

// unnumbered reads what numbered wrote; ok is false for other names.
func unnumbered(chain, prefix string) (w way, ok bool) {
	rest, ok := strings.CutPrefix(chain, prefix)
	if !ok {
		return 0, false
	}
	if cut, ok := strings.CutPrefix(rest, "inside-"); ok {
		w, rest = w|wayIn, cut
	}
	if cut, ok := strings.CutPrefix(rest, "node-"); ok {
		w, rest = w|wayNode, cut
	}
	n, err := strconv.ParseUint(rest, 10, 32)
	return w | way(n), err == nil && way(n) <= wayCount
}

// isOptional reports whether a chain exists only while something needs it.
func isOptional(chain string) bool {
	for _, prefix := range []string{prefixPick, prefixSticky, prefixLearn} {
		if _, ok := unnumbered(chain, prefix); ok {
			return true
		}
	}
	return chain == chainLearn || chain == chainLearnOut
}

// bytes returns a way as keys and data have it.
func (w way) bytes() string { return nft.NumberBytes(uint32(wayMagic | w)) }

// wayOf reads what bytes wrote.
func wayOf(s string) way { return way(nft.NumberOf(s)) &^ wayMask }

package ipvs

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// What is Switchyard's in the kernel.
const (
	// tableName is our nftables table, one in each family.
	tableName = "switchyard-ipvs"
	// ownTimeout tells our IPVS services from others. The field is the timeout of persistent
	// services; the kernel keeps it for others, and shows and uses it nowhere.
	ownTimeout = 838383
)

// Sets of frontends. Each frontend's place is in one of them; a place is
// address, protocol and port, and a NodePort's has the unspecified address.
// Sets and not a map to verdicts: with each new verdict the kernel walks whole
// maps, looking for loops.
const (
	setPlain       = "plain"             // IPVS, and nothing else
	setMasqAll     = "plain-masq-all"    // the same, masqueraded
	setMasqNonPods = "plain-masq-nonpod" // the same, for all but pods
	setMasqNode    = "plain-masq-node"   // the same, for the node alone
	setSpecial     = "special"           // source ranges, affinity, or two pools
	setEmptyReject = "empty-reject"      // no endpoints
	setEmptyDrop   = "empty-drop"
)

// The other sets and maps.
const (
	setVIPs       = "vips"            // addresses with a local route of ours
	setAddresses  = "node-addresses"  // that take NodePorts
	setRestricted = "restricted"      // places with source ranges
	setSources    = "sources"         // place, client range
	setMasquerade = "special-masq"    // special place → chain
	setInside     = "inside"          // places with a pool of their own for node and pods
	setEmpty      = "special-empty"   // special place → chain, where the pool is empty
	setPicks      = "picks"           // place → chain that picks an endpoint without IPVS
	setPicked     = "picked"          // place, index → endpoint
	setHairpin    = "hairpin"         // addresses of this node's endpoints, twice, protocol and port
	setSticky     = "sticky"          // place with affinity → chain
	setStickyIn   = "sticky-inside"   // the same for node and pods
	setLearn      = "learn"           // number of a ServicePort with affinity → chain
	setIDs        = "affinity-ids"    // place → number of its ServicePort
	setMembers    = "affinity-pool"   // place, number of an endpoint → endpoint
	setMembersIn  = "affinity-inside" // the same for node and pods
	setAffinity   = "affinity"        // number of ServicePort, client → number of endpoint; packets write it
)

// Chains. The first group are base chains.
const (
	chainPrerouting  = "prerouting"
	chainOutput      = "output"
	chainPostrouting = "postrouting"
	chainLocalIn     = "local-in"
	chainInput       = "input"
	chainPicked      = "picked-prerouting" // behind prerouting
	chainForward     = "forward"           // these three when nobody can translate any more
	chainLastInput   = "last-input"
	chainLastOutput  = "last-output"

	chainServices    = "services"
	chainLost        = "lost"
	chainLocalhost   = "localhost"
	chainPass        = "to-ipvs"
	chainMark        = "masq-all"
	chainMarkNonPods = "masq-nonpod"
	chainMarkNode    = "masq-node"
	chainSpecial     = "to-special"
	chainAsk         = "ask-inside"
	chainInside      = "from-inside"
	chainReject      = "do-reject"
	chainDrop        = "do-drop"

	prefixPick     = "pick-"          // pick-N: one of N endpoints
	prefixSticky   = "sticky-"        // sticky-S: affinity of S seconds
	prefixStickyIn = "sticky-inside-" // the same for node and pods
	prefixLearn    = "learn-"         // learn-S: remember the endpoint for S seconds
)

// frontendSets returns the sets of frontends, with the chain that goes on.
func frontendSets() []struct{ set, chain string } {
	return []struct{ set, chain string }{
		{setPlain, chainPass}, {setMasqAll, chainMark}, {setMasqNonPods, chainMarkNonPods}, {setMasqNode, chainMarkNode},
		{setSpecial, chainSpecial}, {setEmptyReject, chainReject}, {setEmptyDrop, chainDrop},
	}
}

func isFrontends(set string) bool {
	for _, s := range frontendSets() {
		if s.set == set {
			return true
		}
	}
	return false
}

func numbered(prefix string, n int) string { return fmt.Sprintf("%s%d", prefix, n) }

// numberOf returns the number in a chain's name, 0 if there is none.
func numberOf(chain, prefix string) int {
	rest, ok := strings.CutPrefix(chain, prefix)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		return 0
	}
	return n
}

// affinityClients is how many clients a family remembers the endpoint of.
const affinityClients = 1 << 18

// newTable returns our nftables table of one family.
func newTable(f dataplane.Family, c *counts) *nft.Table { return nft.NewTable(f, spec(f), &c.table) }

// spec returns the sets and base chains of a table.
func spec(f dataplane.Family) nft.Spec {
	addr, number, verdict := nftables.TypeIPAddr, nftables.TypeClassID, nftables.TypeVerdict
	if f == dataplane.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	none := nftables.SetDatatype{}
	concat := nftables.MustConcatSetType // a handful of types never are too many
	place := concat(addr, nftables.TypeInetProto, nftables.TypeInetService)
	member := concat(addr, nftables.TypeInetProto, nftables.TypeInetService, number)
	endpoint := concat(addr, nftables.TypeInetService)
	var sets []nft.Set
	add := func(name string, key, data nftables.SetDatatype) {
		sets = append(sets, nft.Set{Name: name, Key: key, Data: data})
	}
	for _, name := range []string{setPicked, setMembers, setMembersIn} {
		add(name, member, endpoint)
	}
	add(setAddresses, addr, none)
	add(setRestricted, place, none)
	add(setInside, place, none)
	sets = append(sets,
		nft.Set{Name: setSources, Key: concat(addr, nftables.TypeInetProto, nftables.TypeInetService, addr), Intervals: true},
		nft.Set{Name: setAffinity, Key: concat(number, addr), Data: number, Clients: affinityClients})
	add(setHairpin, concat(addr, addr, nftables.TypeInetProto, nftables.TypeInetService), none)
	add(setIDs, place, number)
	sets = append(sets, nft.Set{Name: setLearn, Key: number, Data: verdict, Returns: true})
	for _, s := range []nft.Set{{Name: setMasquerade, Returns: true}, {Name: setEmpty}, {Name: setPicks}, {Name: setSticky, Returns: true}, {Name: setStickyIn, Returns: true}} {
		s.Key, s.Data = place, verdict
		sets = append(sets, s)
	}
	for _, s := range frontendSets() {
		add(s.set, place, none)
	}
	add(setVIPs, addr, none) // last: what is reached at an address is known by then
	return nft.Spec{Name: tableName, Sets: sets, Hooks: hooks()}
}

// hooks returns the base chains. IPVS takes packets between the destination and
// the source NAT of INPUT, and right after the destination NAT of OUTPUT; its
// packets then pass POSTROUTING, or the rest of INPUT where the endpoint is the node.
func hooks() map[string]nft.Hook {
	last := nftables.ChainPriorityRef(math.MaxInt32 - 1) // before conntrack takes the connection over
	return map[string]nft.Hook{
		chainPrerouting:  {Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest, Type: nftables.ChainTypeNAT},
		chainOutput:      {Hook: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest, Type: nftables.ChainTypeNAT},
		chainPostrouting: {Hook: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Type: nftables.ChainTypeNAT},
		chainLocalIn:     {Hook: nftables.ChainHookInput, Priority: nftables.ChainPriorityNATSource, Type: nftables.ChainTypeNAT},
		chainPicked:      {Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 1), Type: nftables.ChainTypeFilter},
		chainInput:       {Hook: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter},
		chainForward:     {Hook: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter},
		chainLastInput:   {Hook: nftables.ChainHookInput, Priority: last, Type: nftables.ChainTypeFilter},
		chainLastOutput:  {Hook: nftables.ChainHookOutput, Priority: last, Type: nftables.ChainTypeFilter},
	}
}

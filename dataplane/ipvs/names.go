package ipvs

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
)

// What is Switchyard's in the kernel.
const (
	// tableName is our nftables table, one in each family.
	tableName = "switchyard-ipvs"
	// ownTimeout marks our IPVS services. The field is the timeout of persistent
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
	setChains     = "(chains)"        // no set: chains that come and go with their use
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

// frontendSets are the sets of frontends, with the chain that goes on.
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

// numberOf is the number in a chain's name, 0 if there is none.
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

// noteOf returns what the comments of a chain's rules carry beside their signature.
func noteOf(s localnet.State) func(chain string) string {
	return func(chain string) string {
		if chain == chainInput {
			return s.Note()
		}
		return ""
	}
}

package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// Chains of the nat table whose names and number are fixed.
const (
	chainServices    = "SWITCHYARD-SERVICES"     // from PREROUTING and OUTPUT: what is a frontend?
	chainFrontends   = "SWITCHYARD-FRONTENDS"    // root of the tree over address, protocol and port
	chainAddresses   = "SWITCHYARD-ADDRESSES"    // root of the tree over the node's own addresses
	chainNodePorts   = "SWITCHYARD-NODEPORTS"    // root of the tree over protocol and port
	chainMarked      = "SWITCHYARD-MARKED"       // the same for packets that another program marked
	chainReject      = "SWITCHYARD-REJECT"       // verdict: refuse at once
	chainDrop        = "SWITCHYARD-DROP"         // verdict: drop in silence
	chainMasqNonPods = "SWITCHYARD-MASQ-NONPODS" // mark for masquerade unless a pod sent it
	chainMasqNode    = "SWITCHYARD-MASQ-NODE"    // mark for masquerade if the node sent it
	chainPostrouting = "SWITCHYARD-POSTROUTING"  // from POSTROUTING: masquerade
	chainHairpin     = "SWITCHYARD-HAIRPIN"      // root of the tree over local endpoints that may reach themselves
)

// Chains of the filter table, all fixed but the tree.
const (
	chainInput   = "SWITCHYARD-INPUT"
	chainForward = "SWITCHYARD-FORWARD"
	chainOutput  = "SWITCHYARD-OUTPUT"
	chainVerdict = "SWITCHYARD-VERDICT"    // enforces what the nat table decided
	chainRefuse  = "SWITCHYARD-REFUSE"     // refuses at once
	chainLost    = "SWITCHYARD-LOST"       // what nobody translated: is it of the Service ranges?
	chainVIPs    = "SWITCHYARD-CLUSTERIPS" // root of the tree over ClusterIPs
	chainHealth  = "SWITCHYARD-HEALTH"     // root of the tree over health check ports
)

// Starts of the names of chains that are added and removed. All that Switchyard owns
// starts with ownPrefix or with "SY-", one letter, "-".
const (
	ownPrefix      = "SWITCHYARD-"
	prefixPool     = "SY-P-" // endpoints of one pool of one ServicePort
	prefixChoice   = "SY-E-" // before a pool: whom to masquerade, which pool for whom
	prefixSources  = "SY-S-" // before those: which clients may come in
	prefixRecent   = "SY-R-" // not a chain: a list of clients of one endpoint
	prefixTrial    = "SY-T-" // chains that nothing leads to, for a try
	prefixFrontend = "SY-F-" // inner nodes of the trees
	prefixAddress  = "SY-A-"
	prefixNodePort = "SY-N-"
	prefixHairpin  = "SY-H-"
	prefixHealth   = "SY-C-"
	prefixVIP      = "SY-I-"
)

// jumpsOf returns a table's rules of Switchyard outside its own chains.
func jumpsOf(table string) []restore.Jump {
	if table == restore.Filter {
		return []restore.Jump{
			{From: "INPUT", To: chainInput, Comment: "switchyard: verdicts, health checks"},
			{From: "FORWARD", To: chainForward, Comment: "switchyard: verdicts, Service traffic"},
			{From: "OUTPUT", To: chainOutput, Comment: "switchyard: verdicts"},
		}
	}
	return []restore.Jump{
		{From: "PREROUTING", To: chainServices, Comment: "switchyard: Services"},
		{From: "OUTPUT", To: chainServices, Comment: "switchyard: Services"},
		{From: "POSTROUTING", To: chainPostrouting, Comment: "switchyard: masquerade"},
	}
}

// maxChainName is the kernel's limit (XT_EXTENSION_MAXNAMELEN less the end).
const maxChainName = 28

// isOwn reports whether a chain is one of Switchyard's.
func isOwn(chain string) bool {
	if strings.HasPrefix(chain, ownPrefix) {
		return true
	}
	return len(chain) > len(prefixPool) && strings.HasPrefix(chain, "SY-") && chain[3] >= 'A' && chain[3] <= 'Z' && chain[4] == '-'
}

// portHash returns what stands for a ServicePort in the names of its chains.
func portHash(id dataplane.PortID) string {
	return hash(id.Namespace, id.Service, id.Port, id.Protocol.String())
}

// recentList returns the name of the list of clients that stay with one endpoint of a
// ServicePort. It is one name space for both families.
func recentList(id dataplane.PortID, e dataplane.Endpoint) string {
	return prefixRecent + hash(id.Namespace, id.Service, id.Port, id.Protocol.String(), e.Addr.String())
}

// hashLen is the length of a hash.
const hashLen = 16

// hash returns 16 letters and digits for some words: 80 bits.
func hash(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return base32.StdEncoding.EncodeToString(sum[:])[:hashLen]
}

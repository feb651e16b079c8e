package watcher

import (
	"log/slog"
	"time"

	"github.com/switchyard-io/switchyard/watcher/facts"
)

// keptFacts holds on to what the Node said before. A Node that is deleted and
// registered again is bare until the controllers have filled it in; NodePorts,
// masquerading and topology must not go by that. So a fact that is known is
// replaced by another fact alone, for as long as the first Snapshot would wait
// for one.
type keptFacts struct {
	log                   *slog.Logger
	nodeWait, podCIDRWait time.Duration

	said  *facts.Node // the Node as it was told last
	bare  time.Time   // since when it lacks something; zero: it does not
	timer *time.Timer
}

// complete returns the Node as said, with the facts of the one before it where it
// has none and its time to have them is not over. It calls again when that is.
func (k *keptFacts) complete(said, before *facts.Node, again func()) *facts.Node {
	k.said = said
	k.stop()
	if before == nil || said.Final {
		return said
	}
	node, now := *said, time.Now()
	lacksNode := len(said.IPs) == 0 && len(before.IPs) > 0 || said.Zone == "" && before.Zone != ""
	lacksPods := len(said.PodCIDRs) == 0 && len(before.PodCIDRs) > 0
	if !lacksNode && !lacksPods {
		k.bare = time.Time{}
		return said
	}
	if k.bare.IsZero() {
		k.bare = now
		k.log.Warn("the Node says less than before; keeping what it said", "node", said.Name.Name,
			"addresses", len(said.IPs) > 0, "podCIDRs", len(said.PodCIDRs) > 0, "zone", said.Zone, "longest", max(k.nodeWait, k.podCIDRWait))
	}
	until := time.Duration(0) // the next of the two ends
	keep := func(lacks bool, wait time.Duration) bool {
		left := wait - now.Sub(k.bare)
		if !lacks || left <= 0 {
			return false
		}
		if until == 0 || left < until {
			until = left
		}
		return true
	}
	if keep(lacksNode, k.nodeWait) {
		if len(said.IPs) == 0 {
			node.IPs = before.IPs
		}
		if said.Zone == "" {
			node.Zone = before.Zone
		}
	}
	if keep(lacksPods, k.podCIDRWait) {
		node.PodCIDRs = before.PodCIDRs
	}
	if until > 0 {
		k.timer = time.AfterFunc(until, again)
	}
	return &node
}

func (k *keptFacts) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

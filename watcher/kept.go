package watcher

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
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

	said    *facts.Node          // the Node as it was told last
	lacking map[string]time.Time // the facts that it lacks, and since when
	timer   *time.Timer
}

// complete returns the Node as said, with the facts of the one before it where it
// has none and its time to have them is not over. It calls again when that is.
func (k *keptFacts) complete(said, before *facts.Node, again func()) *facts.Node {
	k.said = said
	k.stop()
	if before == nil || said.Final {
		k.lacking = nil
		return said
	}
	node, next := *said, time.Duration(0)
	keep := func(fact string, lacks bool, wait time.Duration) bool {
		left := k.left(fact, lacks, wait)
		if left > 0 && (next == 0 || left < next) {
			next = left
		}
		return left > 0
	}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		if had := ofFamily(before.IPs, f, netip.Addr.Is4); keep("addresses of "+f.String(), len(had) > 0 && len(ofFamily(said.IPs, f, netip.Addr.Is4)) == 0, k.nodeWait) {
			node.IPs = beside(node.IPs, had, before.IPs[0] == had[0])
		}
		is4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
		if had := ofFamily(before.PodCIDRs, f, is4); keep("podCIDRs of "+f.String(), len(had) > 0 && len(ofFamily(said.PodCIDRs, f, is4)) == 0, k.podCIDRWait) {
			node.PodCIDRs = beside(node.PodCIDRs, had, before.PodCIDRs[0] == had[0])
		}
	}
	if keep("zone", said.Zone == "" && before.Zone != "", k.nodeWait) {
		node.Zone = before.Zone
	}
	if next > 0 {
		k.timer = time.AfterFunc(next, again)
	}
	return &node
}

// left returns how long a fact of the Node before is still kept; not above zero: it is not.
func (k *keptFacts) left(fact string, lacks bool, wait time.Duration) time.Duration {
	if !lacks {
		delete(k.lacking, fact)
		return 0
	}
	since, known := k.lacking[fact]
	if !known {
		since = time.Now()
		if k.lacking == nil {
			k.lacking = map[string]time.Time{}
		}
		k.lacking[fact] = since
		k.log.Warn("the Node says less than before; keeping what it said", "fact", fact, "longest", wait)
	}
	return wait - time.Since(since)
}

// ofFamily returns the elements of one family.
func ofFamily[T any](all []T, f dataplane.Family, is4 func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(e T) bool { return is4(e) != (f == dataplane.IPv4) })
}

// beside puts the elements that are kept beside others, in the order that they had.
func beside[T any](others, kept []T, first bool) []T {
	if first {
		return slices.Concat(kept, others)
	}
	return slices.Concat(others, kept)
}

func (k *keptFacts) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

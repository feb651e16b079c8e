package watcher

import (
	"slices"

	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Status is what there is to know of a Watcher, for health and status pages.
type Status struct {
	// Synced: there is a Snapshot to take. Until then Waiting says for what.
	Synced  bool
	Waiting string
	// NodeEligible: the Node is there, is not being deleted, and the cluster
	// autoscaler does not remove it, so that load balancers may send traffic
	// here (KUBE-PROXY §2.3). Always true of a Node that manifests need not tell of.
	NodeEligible bool
	Conflicts    []Conflict // sorted by protocol, then address
	Stats        Stats
}

// Stats count what sources told; they only grow.
type Stats struct {
	ServiceChanges uint64 // Services put or removed
	SliceChanges   uint64 // EndpointSlices put or removed
}

// Status returns how it stands now. What is contested is put into words without
// the lock, because there may be much of it.
func (w *Watcher) Status() Status {
	s, contests := w.status()
	slices.SortFunc(contests, func(a, b contest) int { return a.address.compare(b.address) })
	for _, c := range contests {
		s.Conflicts = append(s.Conflicts, c.conflict())
	}
	return s
}

func (w *Watcher) status() (Status, []contest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Status{Synced: w.started, Waiting: w.waiting(), NodeEligible: w.nodeEligible(), Stats: w.stats}, w.claims.contests()
}

// Waiting returns what the first Snapshot waits for. Empty means nothing.
func (w *Watcher) Waiting() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting()
}

// NodeEligible returns Status.NodeEligible. It costs nothing, for health checks.
func (w *Watcher) NodeEligible() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodeEligible()
}

func (w *Watcher) nodeEligible() bool { return w.node != nil && !w.nodeGone && w.node.Eligible }

// Stats returns Status.Stats. It costs nothing, for metrics.
func (w *Watcher) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// ServiceUID is the UID of a Service; "": not known.
func (w *Watcher) ServiceUID(namespace, name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.services[facts.Name{Namespace: namespace, Name: name}]; s != nil && s.facts != nil {
		return s.facts.UID
	}
	return ""
}

func (w *Watcher) waiting() string {
	switch {
	case w.started:
		return ""
	case !w.waits.services:
		return "Services"
	case !w.waits.slices:
		return "EndpointSlices"
	case !w.waits.addresses:
		return "this node's addresses"
	}
	missing, _ := w.missing()
	return missing
}

package watcher

import "github.com/switchyard-io/switchyard/watcher/facts"

// Status is what there is to know of a Watcher, for health and status pages.
type Status struct {
	// Synced: a Snapshot has been published. Until then Waiting says for what.
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

// Status tells how it stands now.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Status{
		Synced:       w.snapshot != nil,
		NodeEligible: w.node != nil && !w.nodeGone && w.node.Eligible,
		Conflicts:    w.claims.conflicts(),
		Stats:        w.stats,
	}
	if !s.Synced {
		s.Waiting = w.waitingFor()
	}
	return s
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

func (w *Watcher) waitingFor() string {
	switch {
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

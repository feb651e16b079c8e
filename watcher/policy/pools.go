package policy

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// poolSet is who answers at the frontends of one ServicePort.
type poolSet struct {
	cluster      *dataplane.Pool // whatever the policies are
	internal     *dataplane.Pool // ClusterIP, whoever asks
	external     *dataplane.Pool // the other kinds, clients from outside
	inside       *dataplane.Pool // the other kinds, the node and its pods; nil: external
	externalSNAT dataplane.SNAT
}

// pools applies the traffic policies (§1.5) and says what becomes of
// connections that nobody answers (§1.6).
//
//	                   Pool      Inside    SNAT       empty
//	internal Cluster   Cluster   -         (per Env)  reject
//	internal Local     Local     -         (per Env)  drop, or reject if no node has an endpoint
//	external Cluster   Cluster   -         all        reject
//	external Local     Local     Cluster   node       as internal Local
func pools(svc *facts.Service, known []endpoint, zone string) poolSet {
	cluster := &dataplane.Pool{Endpoints: choose(known, clusterSet(known, zone), nil), IfEmpty: dataplane.Reject}
	p := poolSet{cluster: cluster, internal: cluster, external: cluster, externalSNAT: dataplane.SNATAll}
	if !svc.InternalLocal && !svc.ExternalLocal {
		return p
	}
	local := &dataplane.Pool{Endpoints: choose(known, localSet(known), cluster.Endpoints), IfEmpty: dataplane.Reject}
	if len(local.Endpoints) == 0 && reachable(known) {
		local.IfEmpty = dataplane.Drop
	}
	if equalPool(local, cluster) {
		local = cluster
	}
	if svc.InternalLocal {
		p.internal = local
	}
	if svc.ExternalLocal {
		p.external, p.externalSNAT = local, dataplane.SNATNode
		if local != cluster {
			p.inside = cluster
		}
	}
	return p
}

func equalPool(a, b *dataplane.Pool) bool {
	return a == b || a != nil && b != nil && a.IfEmpty == b.IfEmpty && slices.Equal(a.Endpoints, b.Endpoints)
}

// Keep gives back what of built is as it was in old: the very ServicePorts,
// Pools and HealthChecks, so that pointers tell what changed. Both are the
// ports of one Service, sorted by ID.
func Keep(old, built []*dataplane.ServicePort) []*dataplane.ServicePort {
	before := old
	for i, b := range built {
		keepHealth(before, b)
		for len(old) > 0 && old[0].ID.Compare(b.ID) < 0 {
			old = old[1:]
		}
		if len(old) == 0 || old[0].ID != b.ID {
			continue
		}
		if equalPort(old[0], b) {
			built[i] = old[0]
			continue
		}
		keepPools(old[0], b)
	}
	return built
}

func keepHealth(before []*dataplane.ServicePort, built *dataplane.ServicePort) {
	for _, o := range before {
		if built.HealthCheck != nil && o.HealthCheck != nil && o.ID.Family == built.ID.Family && *o.HealthCheck == *built.HealthCheck {
			built.HealthCheck = o.HealthCheck
			return
		}
	}
}

func keepPools(old, built *dataplane.ServicePort) {
	for i := range built.Frontends {
		b := &built.Frontends[i]
		for _, o := range old.Frontends {
			for _, pool := range []*dataplane.Pool{o.Pool, o.Inside} {
				if equalPool(pool, b.Pool) {
					b.Pool = pool
				}
				if equalPool(pool, b.Inside) {
					b.Inside = pool
				}
			}
		}
	}
	if slices.Equal(old.Serving, built.Serving) {
		built.Serving = old.Serving
	}
}

func equalPort(a, b *dataplane.ServicePort) bool {
	return a.ID == b.ID && a.Affinity == b.Affinity && a.Scheduler == b.Scheduler && a.HealthCheck == b.HealthCheck &&
		slices.Equal(a.Serving, b.Serving) && slices.Equal(a.Ending, b.Ending) && slices.EqualFunc(a.Frontends, b.Frontends, equalFrontend)
}

func equalFrontend(a, b dataplane.Frontend) bool {
	return a.Kind == b.Kind && a.Addr == b.Addr && a.SNAT == b.SNAT && slices.Equal(a.Sources, b.Sources) &&
		equalPool(a.Pool, b.Pool) && equalPool(a.Inside, b.Inside)
}

package conformance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// heldConnections is how many go on in the case below; each asks once in
// askEvery, on an emulated machine less often.
const (
	heldConnections = 1000
	askEvery        = time.Second
)

// lifeUnderLoad holds connections of every kind while the agent is restarted,
// replaced by one with other sizes, and given many worlds. Meanwhile others are silent.
func lifeUnderLoad(r *run) {
	w := heldServices("b1", "a1")
	r.sync(w)
	answered := r.silentAfterReset(from("outside").toNodePort("cluster", "node-a"), from("outside").to(clusterIP, "cluster"), from("outside").to(loadBalancer, "kept"))
	flows := r.holdMany()
	programs := r.programs()
	r.restart("node-a")
	r.restart("node-b")
	r.syncUnknown(w)
	if r.col.sockets {
		if same := slices.ContainsFunc(r.programs(), func(id uint32) bool { return slices.Contains(programs, id) }); same || len(programs) == 0 {
			r.Errorf("of %d programs some are those of before the restart", len(programs))
		}
		at := r.site(r.node("node-a"))
		at.MaxEndpoints = 20000
		r.restartAt("node-a", at)
		flows = append(flows, r.holdAll(from("outside").toNodePort("cluster", "node-a").in(dataplane.TCP, dataplane.UDP))...) // the old programs are at work until the Sync
		r.syncUnknown(w)
		if have := r.entriesOf("slots"); have != 2*at.MaxEndpoints {
			r.Errorf("the slots map has room for %d entries; want %d", have, 2*at.MaxEndpoints)
		}
	}
	r.manySyncs()
	r.restart("node-a") // back to the default sizes
	r.syncUnknown(w)
	time.Sleep(2 * netlab.Patient(askEvery))
	r.stopAll(flows)
	answered()
}

// heldServices are the Services of the connections that are held; each may have
// more endpoints than the one that they were opened to.
func heldServices(remote, local string) world {
	return world{services: []service{
		{name: "cluster", frontends: append(frontendsOf(externalKinds, frontend{pool: on(remote), snat: dataplane.SNATAll}), frontend{kind: clusterIP, pool: on(remote), snat: dataplane.SNATNonPods})},
		{name: "kept", frontends: frontendsOf(externalKinds, frontend{pool: own(local), snat: dataplane.SNATNode}.or(on(local)))},
	}}
}

// holdMany opens all the connections: masqueraded by the NodePort, with the
// source kept, to the ClusterIP from where no socket hook is and from pods.
func (r *run) holdMany() []heldFlow {
	r.Helper()
	both := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
	probes := []probe{
		from("outside").toNodePort("cluster", "node-a").in(both...), from("outside2").to(loadBalancer, "kept").in(both...),
		from("outside").to(clusterIP, "cluster").in(both...), from("a3").to(clusterIP, "cluster").in(both...), from("node-a").to(clusterIP, "cluster").in(both...),
	}
	each := heldConnections / len(probes) / len(both) / len(families)
	var mu sync.Mutex
	var all sync.WaitGroup
	var flows []heldFlow
	for _, p := range probes {
		all.Go(func() {
			for range each {
				some := r.startAll(func(h *netlab.Host, req netlab.Request) (*netlab.Load, error) {
					req.Timeout = answerTime
					return h.Hold(req, netlab.Patient(askEvery))
				}, p)
				mu.Lock()
				flows = append(flows, some...)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return flows
}

// manySyncs gives node-a many worlds, with random other Services and random
// further endpoints of those that are held. What costs a command each time gets fewer.
func (r *run) manySyncs() {
	r.Helper()
	const n = 100
	random := rand.New(rand.NewPCG(3, 5))
	for i := range n {
		more := []string{"", " a2", " b2", " a2 b2 b3"}[random.IntN(4)]
		w := heldServices("b1"+more, "a1"+more)
		if random.IntN(4) == 0 {
			w.services[random.IntN(2)].affinity = time.Minute
		}
		other := randomWorld(random)
		w.services, w.pods = append(w.services, other.services...), other.pods
		if err := r.syncA(random.IntN(50) == 0, w); err != nil {
			r.Error(fmt.Errorf("sync %d: %w", i, err))
		}
	}
}

package conformance

import (
	"fmt"
	"strconv"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The clauses under faults: a step that fails in the middle of a Sync, and
// SIGKILL in the middle of a Sync. A steady load runs through all of it.

// mostPoints bounds how many points of a Sync a fault is tried at.
const mostPoints = 3

func crashCases() []testCase {
	return []testCase{
		{"clause 5", "connections survive SIGKILL of the agent and a new start", func(r *run) {
			w := world{services: []service{serving("web", "b1")}}
			r.sync(w)
			held, load := r.holdEverywhere(), r.loadEverywhere()
			r.kill("node-a")
			time.Sleep(netlab.Patient(100 * time.Millisecond))
			r.restart("node-a")
			r.syncUnknown(w)
			time.Sleep(netlab.Patient(100 * time.Millisecond))
			r.stopAll(append(held, load...))
		}},
		{"clause 1", "a step that fails in the middle of a Sync harms nothing, and the next Sync repairs", func(r *run) { faultAtEachPoint(r, failAt, false) }},
		{"clause 1", "so does a step that does its work and then fails", func(r *run) { faultAtEachPoint(r, failAfter, false) }},
		{"clause 1", "a step that fails in the middle of Sync(nil, w) harms nothing, and the next Sync repairs", func(r *run) { faultAtEachPoint(r, failAt, true) }},
		{"clause 1", "SIGKILL before a step in the middle of a Sync harms nothing, and Sync(nil, w) repairs", func(r *run) { faultAtEachPoint(r, killAt, false) }},
		{"clause 1", "SIGKILL after a step in the middle of Sync(nil, w) harms nothing, and Sync(nil, w) repairs", func(r *run) { faultAtEachPoint(r, killAfter, true) }},
		{"clause 1", "SIGKILL of the agent and its commands at any moment of a large Sync harms nothing", killAnyMoment},
		{"clause 1", "a first Sync that is killed leaves what the next one completes", killedFirstSync},
		{"clause 7", "Cleanup after a crash in the middle of a Sync clears all", func(r *run) {
			r.cleared("node-a")
			a := r.node("node-a")
			empty := r.col.state(r, a)
			f := r.col.faults(r)
			n := r.countSteps(f, true, world{services: []service{serving("web", "a1")}})
			r.must(r.agentOf("node-a").cleanup())
			for _, point := range points(n) {
				agent := f.restart(r, "node-a")
				f.plan(r, killAfter, strconv.Itoa(point))
				_ = agent.sync(true, world{services: []service{serving("web", "a1 b1")}}.snapshot(r, a)) // it is killed on the way
				r.must(r.restart("node-a").cleanup())
				r.sameState(fmt.Sprintf("Cleanup after a crash at step %d", point), empty, r.col.state(r, a))
			}
			r.restart("node-a") // one that was open before Cleanup has nothing to go on from
		}},
	}
}

// two are the worlds that a fault strikes between; keep is the same in both,
// and web changes wholly.
func two() (before, after world) {
	keep := service{name: "web", frontends: frontendsOf(kinds, frontend{pool: on("a1 b1"), snat: dataplane.SNATAll})}
	before = world{services: []service{keep, serving("changes", "a1"), serving("goes", "a2")}}
	after = world{services: []service{keep, serving("changes", "b1 b2"), serving("comes", "a2")}, pods: byPrefix}
	return before, after
}

// countSteps is in how many steps a Sync of w on node-a is done.
func (r *run) countSteps(f faults, unknown bool, w world) int {
	r.Helper()
	a := f.restart(r, "node-a")
	f.plan(r, "")
	r.must(a.sync(unknown, w.snapshot(r, a.node)))
	n := len(f.steps(r))
	if n == 0 {
		r.Fatal("the Sync did nothing that a fault could strike")
	}
	return n
}

// points are up to mostPoints of n, the first and the last among them.
func points(n int) []int {
	var all []int
	for i := range min(n, mostPoints) {
		all = append(all, 1+i*max(n-1, 1)/max(min(n, mostPoints)-1, 1))
	}
	return all
}

// faultAtEachPoint strikes a Sync at several of its steps. What does not
// change serves on without a failure, and the Sync after it leaves the kernel
// as wanted.
func faultAtEachPoint(r *run, fault string, unknown bool) {
	before, after := two()
	r.sync(before)
	f := r.col.faults(r)
	r.must(f.restart(r, "node-a").sync(true, before.snapshot(r, r.node("node-a"))))
	f.plan(r, "")
	r.must(r.agentOf("node-a").sync(unknown, after.snapshot(r, r.node("node-a"))))
	n := len(f.steps(r))
	if n == 0 {
		r.Fatal("the Sync did nothing that a fault could strike")
	}
	load := r.loadEverywhere()
	for _, point := range points(n) {
		f.plan(r, "")
		f.restart(r, "node-a")
		r.must(r.syncA(true, before))
		f.plan(r, fault, strconv.Itoa(point))
		_ = r.syncA(unknown, after) // an error, or none where the backend found another way
		f.plan(r, "")
		if !r.agentOf("node-a").alive() || fault == killAt || fault == killAfter {
			r.restart("node-a")
		}
		r.must(r.syncA(true, after))
		r.observeOn(r.agentOf("node-a"), after.snapshot(r, r.node("node-a")))
		r.check(from("outside").to(loadBalancer, "changes").reaches("b1 b2"), from("outside").toNodePort("comes", "node-a").reaches("a2"))
	}
	r.stopAll(load)
	r.restart("node-a")
}

// many is a world large enough for a Sync of it to take a while.
func many(n int, endpoints string) world {
	w := world{services: []service{serving("web", "a1 b1")}}
	for i := range n {
		w.services = append(w.services, service{name: fmt.Sprintf("bulk-%d", i), frontends: []frontend{{kind: clusterIP, pool: on(endpoints)}, {kind: nodePort, pool: on(endpoints), snat: dataplane.SNATAll}}})
	}
	return w
}

// killAnyMoment kills the agent's whole process group after a growing time.
func killAnyMoment(r *run) {
	small, large := many(3, "a1"), many(150, "a1 b1 b2")
	r.sync(small)
	load := r.loadEverywhere()
	for i, wait := range []time.Duration{5, 20, 45, 80, 130, 200} {
		a := r.restart("node-a")
		w := small
		if i%2 == 0 {
			w = large
		}
		r.world = w
		snapshot := w.snapshot(r, a.node)
		done := make(chan error, 1)
		go func() { done <- a.sync(true, snapshot) }()
		time.Sleep(netlab.Patient(wait * time.Millisecond))
		a.process.KillGroup()
		if err := <-done; err == nil {
			r.Logf("the Sync was done within %s", wait*time.Millisecond)
		}
	}
	r.restart("node-a")
	r.must(r.syncA(true, large))
	r.observeOn(r.agentOf("node-a"), large.snapshot(r, r.node("node-a")))
	r.stopAll(load)
	r.check(from("a3").to(clusterIP, "bulk-149").reaches("a1 b1 b2"), from("outside").toNodePort("bulk-100", "node-a").reaches("a1 b1 b2"))
}

// killedFirstSync kills the first Sync on a clean node at several steps.
func killedFirstSync(r *run) {
	w := world{services: []service{serving("web", "a1 b1"), sticky("sticky", "a2", time.Hour)}}
	r.cleared()
	r.world = w
	r.must(r.agentOf("node-b").sync(true, w.snapshot(r, r.node("node-b"))))
	f := r.col.faults(r)
	n := r.countSteps(f, true, w)
	want := r.col.state(r, r.node("node-a"))
	for _, point := range points(n) {
		r.must(r.agentOf("node-a").cleanup())
		a := f.restart(r, "node-a")
		f.plan(r, killAfter, strconv.Itoa(point))
		_ = a.sync(true, w.snapshot(r, a.node)) // it is killed on the way
		r.restart("node-a")
		r.must(r.syncA(true, w))
		r.sameState(fmt.Sprintf("after a kill at step %d", point), want, r.col.state(r, r.node("node-a")))
	}
	r.must(r.agentOf("node-b").sync(true, w.snapshot(r, r.node("node-b"))))
	r.check(works("web", "a1 b1")...)
}

package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The clauses of dataplane.Backend that need no crash. Each stands in the
// contract; the number is the clause.

// serving is a Service with a frontend of each kind and the probes that show
// that all of them work.
func serving(name, endpoints string) service {
	return service{name: name, frontends: frontendsOf(kinds, frontend{pool: on(endpoints), snat: dataplane.SNATAll})}
}

// works are the sentences for a Service of serving.
func works(name, endpoints string) []probe {
	var all []probe
	for _, client := range []string{"a3", "node-a", "outside"} {
		all = append(all, toEach(kinds, name, from(client).reaches(endpoints))...)
	}
	return all
}

// cleared makes nodes, by default both, as if Switchyard had never been there,
// with a new agent.
func (r *run) cleared(nodes ...string) {
	r.Helper()
	if len(nodes) == 0 {
		nodes = []string{"node-a", "node-b"}
	}
	for _, n := range nodes {
		r.must(r.agentOf(n).cleanup())
		r.restart(n)
	}
}

// walk is a series of worlds, each with some difference from the one before.
func walk() []world {
	loopback := byNothing
	sources := []netip.Prefix{netip.MustParsePrefix("10.30.1.0/24"), netip.MustParsePrefix("fd30:0:0:1::/64")}
	ranged := serving("web", "a1 a2")
	ranged.frontends = slices.Clone(ranged.frontends)
	ranged.frontends[2].sources = sources
	local := service{name: "local", frontends: frontendsOf(externalKinds, frontend{pool: own(everywhere), snat: dataplane.SNATNode}.or(on(everywhere)))}
	return []world{
		{services: []service{serving("web", "a1")}},
		{services: []service{serving("web", "a1 b1"), serving("more", "")}},
		{services: []service{sticky("web", "a1 b1", time.Hour), serving("more", "b2")}},
		{services: []service{ranged, local, serving("more", "b2")}, pods: byPrefix},
		{services: []service{local, serving("empty", "")}, pods: byPrefix},
		{services: []service{local}, pods: loopback},
		{services: []service{}},
		{services: []service{serving("web", "b1"), sticky("sticky", everywhere, time.Minute)}, pods: byNodeCIDR},
	}
}

func clauseCases() []testCase {
	return slices.Concat(stateCases(), neighbourCases(), continuityCases(), []testCase{
		{"clause 8", "a Service port that the kernel refuses is named, and holds up no other", func(r *run) { r.col.refused(r) }},
		{"clause 8", "Service ports of a family that was not asked for are refused by name, the others work", otherFamily},
	})
}

// stateCases are about what the kernel holds after a Sync.
func stateCases() []testCase {
	return []testCase{
		{"clause 1", "Sync(nil, w) leads to the same whatever another agent left", func(r *run) {
			w := world{services: []service{serving("web", "a1 b1"), serving("more", "a2")}}
			for _, left := range walk() {
				r.sync(left)
				r.restart("node-a")
				r.syncUnknown(w)
			}
			r.check(append(works("web", "a1 b1"), works("more", "a2")...)...)
		}},
		{"clause 1", "Sync(nil, w) repairs what another program broke", func(r *run) {
			w := world{services: []service{serving("web", "a1 b1")}}
			r.cleared()
			r.sync(w)
			for _, damage := range r.col.damage {
				damage.do(r, r.node("node-a"))
				r.syncUnknown(w)
				r.check(works("web", "a1 b1")...)
			}
		}},
		{"Observe", "Observe tells what the kernel holds, not what was synced", func(r *run) {
			w := world{services: []service{serving("web", "a1 b1")}}
			r.cleared()
			r.sync(w)
			want := dataplane.Expect(w.snapshot(r, r.node("node-a")))
			damage := r.col.damage[0]
			damage.do(r, r.node("node-a"))
			have, err := r.agentOf("node-a").observe()
			if err == nil && len(have.Differences(want)) == 0 {
				r.Errorf("after %q Observe is as if nothing had happened", damage.name)
			}
			r.syncUnknown(w)
		}},
		{"clause 2", "Sync(a, b) leaves the kernel as Sync(nil, b) does from nothing", func(r *run) {
			worlds := walk()
			r.cleared()
			step := map[int][]string{}
			for i, w := range worlds {
				r.sync(w)
				step[i] = r.col.state(r, r.node("node-a"))
			}
			for i, w := range worlds {
				r.cleared("node-a")
				r.syncUnknown(w)
				r.sameState(fmt.Sprintf("step %d", i+1), r.col.state(r, r.node("node-a")), step[i])
			}
		}},
		{"clause 2", "a random walk of 30 Syncs ends in the kernel state of a fresh start", func(r *run) {
			r.cleared()
			random := rand.New(rand.NewPCG(1, 2)) // always the same walk
			var last world
			for range 30 {
				last = randomWorld(random)
				r.sync(last)
			}
			walked := r.col.state(r, r.node("node-a"))
			r.cleared()
			r.syncUnknown(last)
			r.sameState("after the walk", r.col.state(r, r.node("node-a")), walked)
		}},
		{"clause 3", "Sync(w, w) writes nothing, with and without knowing the kernel's state", func(r *run) {
			for _, w := range walk() {
				f := r.col.faults(r)
				f.restart(r, "node-a") // one that has no sockets to end from the world before
				r.sync(w)
				before := r.col.state(r, r.node("node-a"))
				for _, unknown := range []bool{false, true} {
					f.plan(r, "")
					r.must(r.syncA(unknown, w))
					if writes := f.writes(r); len(writes) > 0 {
						r.Errorf("Sync(w, w) (prev unknown: %t) wrote %q", unknown, writes)
					}
					r.sameState("Sync(w, w)", before, r.col.state(r, r.node("node-a")))
				}
			}
			r.restart("node-a")
		}},
	}
}

// randomWorld is a world of up to six Services.
func randomWorld(random *rand.Rand) world {
	endpoints := []string{"", "a1", "b1", "a1 b1", "a1 a2 b1 b2", "a2 b3", "node-a"}
	w := world{pods: []detector{byCIDR, byPrefix}[random.IntN(2)]}
	for i := range 6 {
		if random.IntN(3) == 0 {
			continue
		}
		set := endpoints[random.IntN(len(endpoints))]
		s := service{name: fmt.Sprintf("web-%d", i), affinity: time.Duration(random.IntN(2)*random.IntN(3)) * time.Minute}
		s.frontends = []frontend{{kind: clusterIP, pool: on(set), snat: dataplane.SNATNonPods}}
		for _, kind := range externalKinds {
			switch random.IntN(3) {
			case 0:
				s.frontends = append(s.frontends, frontend{kind: kind, pool: on(set), snat: dataplane.SNATAll})
			case 1:
				s.frontends = append(s.frontends, frontend{kind: kind, pool: own(set), snat: dataplane.SNATNode}.or(on(set)))
			}
		}
		w.services = append(w.services, s)
	}
	return w
}

// sameState compares two dumps, without regard to the order of lines of
// different chains.
func (r *run) sameState(what string, want, have []string) {
	r.Helper()
	const most = 8
	chain := func(a, b string) int { return strings.Compare(chainOf(a), chainOf(b)) }
	want, have = slices.Clone(want), slices.Clone(have)
	slices.SortStableFunc(want, chain)
	slices.SortStableFunc(have, chain)
	if slices.Equal(want, have) {
		return
	}
	count := map[string]int{}
	for _, line := range want {
		count[line]++
	}
	for _, line := range have {
		count[line]--
	}
	var diff []string
	for line, n := range count {
		for range n {
			diff = append(diff, "- "+line)
		}
		for range -n {
			diff = append(diff, "+ "+line)
		}
	}
	slices.Sort(diff)
	if len(diff) == 0 {
		diff = []string{"the same lines in another order"}
	}
	r.Errorf("%s: the kernel's state differs (%d lines, %d lines):\n%s", what, len(want), len(have), strings.Join(diff[:min(len(diff), most)], "\n"))
}

// chainOf is the command, table and chain that a dumped line is of.
func chainOf(line string) string {
	words := strings.Fields(line)
	if len(words) > 3 && words[2] == "-A" {
		return strings.Join(append(words[:2:2], words[3]), " ")
	}
	if len(words) > 2 && strings.HasPrefix(words[2], ":") {
		return strings.Join(append(words[:2:2], words[2][1:]), " ")
	}
	return line
}

// neighbourCases are about what is not ours.
func neighbourCases() []testCase {
	return []testCase{
		{"clause 4", "another program's rules stay as they were through Syncs and Cleanup", func(r *run) {
			a := r.node("node-a")
			r.cleared()
			for _, other := range r.col.foreign {
				other.do(r, a)
			}
			defer r.withoutForeign()
			foreign := r.col.state(r, a)
			if len(foreign) < len(r.col.foreign)/2 {
				r.Fatalf("only %d lines of foreign state: %q", len(foreign), foreign)
			}
			for i, w := range walk() {
				r.sync(w)
				r.holdsAll(fmt.Sprintf("Sync %d", i+1), r.col.state(r, a), foreign)
			}
			w := world{services: []service{serving("web", "a1 b1")}}
			r.syncUnknown(w)
			r.holdsAll("Sync(nil, w)", r.col.state(r, a), foreign)
			r.check(works("web", "a1 b1")...)
			r.must(r.agentOf("node-a").cleanup())
			r.sameState("Cleanup", foreign, r.col.state(r, a))
			r.restart("node-a")
		}},
		{"clause 7", "Cleanup leaves nothing of ours, twice in a row, and ends forwarding", func(r *run) {
			r.cleared()
			empty := r.col.state(r, r.node("node-a"))
			r.sync(world{services: []service{serving("web", "a1 b1"), sticky("sticky", "a1", time.Hour)}})
			for range 2 {
				r.must(r.agentOf("node-a").cleanup())
				r.sameState("Cleanup", empty, r.col.state(r, r.node("node-a")))
				if r.col.left != nil {
					if err := r.col.left(r.site(r.node("node-a"))); err != nil {
						r.Errorf("Cleanup: %v", err)
					}
				}
			}
			r.check(from("a3").to(clusterIP, "web").notServed(), from("outside").to(loadBalancer, "web").notServed(), from("outside").toNodePort("web", "node-a").notServed(),
				from("b3").to(clusterIP, "web").reaches("a1 b1"))
			r.restart("node-a")
		}},
		{"clause 7", "Close keeps forwarding", func(r *run) {
			r.sync(world{services: []service{serving("web", "a1 b1")}})
			before := r.col.state(r, r.node("node-a"))
			r.must(r.agentOf("node-a").close())
			r.kill("node-a")
			r.sameState("Close", before, r.col.state(r, r.node("node-a")))
			r.check(works("web", "a1 b1")...)
		}},
		{"clause 7", "Open leaves forwarding alone until the first Sync", func(r *run) {
			r.sync(world{services: []service{serving("web", "a1 b1")}})
			before := r.col.state(r, r.node("node-a"))
			r.restart("node-a")
			r.sameState("Open", before, r.col.state(r, r.node("node-a")))
			r.check(works("web", "a1 b1")...)
		}},
	}
}

// withoutForeign removes everything from node-a, foreign state too.
func (r *run) withoutForeign() {
	r.Helper()
	a := r.node("node-a")
	for _, damage := range r.col.damage {
		damage.do(r, a)
	}
	r.col.withoutForeign(r, a)
	r.agentOf("node-a").known = false
}

// holdsAll checks that a dump has all lines of another, in their order.
func (r *run) holdsAll(what string, dump, lines []string) {
	r.Helper()
	rest := dump
	for _, line := range lines {
		i := slices.Index(rest, line)
		if i < 0 {
			r.Errorf("%s: another program's line is gone or out of its order: %s", what, line)
			return
		}
		rest = rest[i+1:]
	}
}

// continuityCases are about traffic while Syncs go on.
func continuityCases() []testCase {
	return []testCase{
		{"clause 5", "connections to an endpoint that stays survive Syncs, also those that touch its Service", func(r *run) {
			r.sync(world{services: []service{serving("web", "b1")}})
			held := r.holdEverywhere(dataplane.TCP, dataplane.UDP)
			for i := range 8 {
				r.sync(world{services: []service{serving("web", []string{"b1 a1", "b1 a2 b2", "b1", "b1 b2"}[i%4]), serving("other", "a1")}})
			}
			r.sync(world{services: []service{sticky("web", "b1 a1", time.Hour)}, pods: byPrefix})
			r.syncUnknown(world{services: []service{serving("web", "b1")}})
			r.stopAll(held)
		}},
		{"clause 5", "a TCP connection to an endpoint that leaves goes on, and new ones go to the others", func(r *run) {
			r.sync(world{services: []service{serving("web", "b1")}})
			held := r.holdEverywhere(dataplane.TCP)
			r.sync(world{services: []service{serving("web", "b2 a1")}})
			r.check(works("web", "b2 a1")...)
			r.restart("node-a")
			r.syncUnknown(world{services: []service{serving("web", "b2 a1")}})
			r.check(works("web", "b2 a1")...)
			r.stopAll(held)
		}},
		{"§1.15", "flows of a Service go on when another Service with its endpoint goes", func(r *run) {
			r.sync(world{services: []service{serving("web", "b1"), serving("goes", "b1 a1")}})
			held := r.holdEverywhere(dataplane.TCP, dataplane.UDP)
			r.sync(world{services: []service{serving("web", "b1"), serving("goes", "a1")}})
			r.sync(world{services: []service{serving("web", "b1")}})
			time.Sleep(netlab.Patient(1500 * time.Millisecond)) // flows are ended beside the Sync
			r.stopAll(held)
		}},
		{"§1.15", "UDP sockets whose endpoint goes reach another one", func(r *run) {
			r.sync(world{services: []service{serving("web", "b1")}})
			held := r.holdEverywhere(dataplane.UDP)
			r.sync(world{services: []service{serving("web", "b2")}})
			r.must(r.agentOf("node-a").endFlows())
			r.stopAllMoved(held, "b2")
		}},
		{"clause 5", "connections survive a restart of the agent", func(r *run) {
			w := world{services: []service{serving("web", "b1")}}
			r.sync(w)
			held := r.holdEverywhere(dataplane.TCP, dataplane.UDP)
			r.must(r.agentOf("node-a").close())
			r.restart("node-a")
			r.restart("node-b")
			r.syncUnknown(w)
			time.Sleep(netlab.Patient(100 * time.Millisecond))
			r.stopAll(held)
		}},
		{"clause 5", "1,000 connections with traffic on them, and silent ones after a RST outside their window, survive restarts, other sizes of maps, and many Syncs", lifeUnderLoad},
		{"clause 6", "no new connection fails while a Service's endpoints change 50 times", func(r *run) {
			sets := []string{"a1 b1", "b1 b2", "b2", "a1 a2 b2", "a2"}
			r.sync(world{services: []service{serving("web", sets[0])}})
			load := r.loadEverywhere()
			for i := range 50 {
				if err := r.syncA(false, world{services: []service{serving("web", sets[(i+1)%len(sets)])}}); err != nil {
					r.Error(err)
				}
			}
			r.stopAll(load)
		}},
		{"clause 6", "no new connection fails while other Services and node settings come and go", func(r *run) {
			web := serving("web", "a1 b1")
			r.sync(world{services: []service{web}})
			load := r.loadEverywhere()
			for i := range 20 {
				var more []service
				for k := range i % 5 * 8 {
					more = append(more, serving(fmt.Sprintf("more-%d", k), "a2 b2"))
				}
				w := world{services: append(more, web), pods: detector(i % 4)}
				if err := r.syncA(i%3 == 0, w); err != nil {
					r.Error(err)
				}
			}
			r.stopAll(load)
		}},
	}
}

// holdEverywhere holds connections to a frontend of each kind of web, from a
// pod, from the node and from outside. Hand-made SCTP has none to hold.
func (r *run) holdEverywhere(protocols ...dataplane.Protocol) []heldFlow {
	r.Helper()
	return r.holdAll(
		from("a3").to(clusterIP, "web").in(protocols...), from("node-a").to(clusterIP, "web").in(protocols...),
		from("outside").to(loadBalancer, "web").in(protocols...), from("outside").toNodePort("web", "node-a").in(protocols...),
	)
}

// loadEverywhere opens new connections to web all the time, from a pod, the
// node and outside.
func (r *run) loadEverywhere() []heldFlow {
	r.Helper()
	return r.loadAll(
		from("a3").to(clusterIP, "web").in(dataplane.TCP, dataplane.UDP), from("node-a").to(clusterIP, "web").in(dataplane.TCP),
		from("outside").to(loadBalancer, "web").in(dataplane.TCP), from("outside").toNodePort("web", "node-a").in(dataplane.TCP),
	)
}

// refusedPort has the kernel refuse the rules of one Service, then take them.
func refusedPort(r *run) {
	w := world{services: []service{serving("good", "a1"), serving("bad", "a1"), serving("fine", "b1")}}
	f := newCommandFaults(r)
	a := f.restart(r, "node-a")
	r.sync(w)
	// The address of b3 stands for whatever the kernel may not like.
	next := world{services: []service{serving("good", "a2"), serving("bad", "a1 b3"), serving("fine", "b2"), serving("new", "a1")}}
	f.plan(r, refuse, r.col.name, r.host("b3").Addr(4).String()+":")
	err := r.syncA(false, next)
	var partial *partialError
	if !errors.As(err, &partial) {
		r.Fatalf("Sync returned %v; want a PartialError", err)
	}
	var names []string
	for _, p := range partial.failed {
		names = append(names, p.ID.String())
		if p.ID.Service != "bad" || p.ID.Family != dataplane.IPv4 || p.Err == "" {
			r.Errorf("the error names %s: %s; refused were IPv4 ports of bad", p.ID, p.Err)
		}
	}
	if len(names) != len(protocols) {
		r.Errorf("the error names %q; want the %d IPv4 ports of bad", names, len(protocols))
	}
	r.check(slices.Concat(works("good", "a2"), works("fine", "b2"), works("new", "a1"))...)
	for _, p := range works("bad", "a1") { // as before
		r.check(p.over(dataplane.IPv4))
	}
	for _, p := range works("bad", "a1 b3") {
		r.check(p.over(dataplane.IPv6))
	}
	f.plan(r, "")
	r.must(a.sync(false, next.snapshot(r, a.node)))
	r.observeOn(a, next.snapshot(r, a.node))
	r.check(works("bad", "a1 b3")...)
	r.restart("node-a")
}

// otherFamily opens a backend for IPv4 alone and gives it both families.
func otherFamily(r *run) {
	r.cleared()
	r.kill("node-a")
	a, err := startAgent(r.node("node-a"), r.col, r.site(r.node("node-a")), r.env(r.node("node-a")), dataplane.IPv4)
	r.must(err)
	defer a.process.Kill()
	w := world{services: []service{serving("web", "a1 b1")}}
	r.must(r.agentOf("node-b").sync(true, w.snapshot(r, r.node("node-b"))))
	r.world = w
	err = a.sync(true, w.snapshot(r, a.node))
	var partial *partialError
	if !errors.As(err, &partial) {
		r.Fatalf("Sync returned %v; want a PartialError", err)
	}
	for _, p := range partial.failed {
		if p.ID.Family != dataplane.IPv6 {
			r.Errorf("the error names %s", p.ID)
		}
	}
	if len(partial.failed) != len(protocols) {
		r.Errorf("the error names %d Service ports; want %d", len(partial.failed), len(protocols))
	}
	for _, p := range works("web", "a1 b1") {
		r.check(p.over(dataplane.IPv4))
	}
}

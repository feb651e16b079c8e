package conformance

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// serverPort is where every host answers, in all protocols.
const serverPort = 8080

// The ranges of the addresses that frontends get; the outside reaches them by node-a.
const (
	clusterIPs4, clusterIPs6 = "10.96.0.0/16", "fd96::/112"
	balancers4, balancers6   = "10.97.0.0/16", "fd97::/112"
	externals4, externals6   = "10.98.0.0/16", "fd98::/112"
)

// suite is one column's run: a lab and an agent on each node.
type suite struct {
	col      column
	lab      *netlab.Lab
	agents   []*agent    // by node
	locks    string      // folder of the nodes' xtables locks
	cases    int         // run so far
	services int         // of all cases so far
	others   []io.Closer // what another program holds
	base     string      // what sockets are on top of for now; "": the column's own
	stalls   int         // TCP connections that were made and got no answer; under run.mu
}

func newSuite(t *testing.T, col column) *suite {
	lab, err := netlab.New(t.Context(), netlab.Config{Nodes: 2, Pods: 4, Clients: 2})
	if err != nil {
		t.Fatal(err)
	}
	labs.add(lab)
	s := &suite{col: col, lab: lab, agents: make([]*agent, len(lab.Nodes)), locks: t.TempDir()}
	t.Cleanup(func() {
		for _, a := range s.agents {
			if a.alive() {
				a.process.Stop(netlab.Patient(time.Second))
			}
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []string{clusterIPs4, clusterIPs6, balancers4, balancers6, externals4, externals6} {
		if err := lab.Announce(netip.MustParsePrefix(p), lab.Nodes[0]); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range lab.Hosts() {
		for _, protocol := range protocols {
			if _, err := h.Serve(wireName(protocol), serverPort); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// site is what the backend on a node is told about it.
func (s *suite) site(n *netlab.Node) site {
	return site{PinDir: n.PinDir, Cgroup: n.CgroupRoot, Base: s.base}
}

// run runs one case, on agents that are there and know the kernel's state or not.
func (s *suite) run(t *testing.T, c testCase) {
	s.cases++
	r := &run{T: t, suite: s, id: s.cases}
	defer func() {
		if ending.Load() {
			select {}
		}
		if t.Failed() {
			results.set(c, s.col.name, "FAIL")
			for _, a := range s.agents {
				if a.alive() {
					t.Logf("%s wrote last:\n%s", a.node.Name, a.log())
				}
				if s.col.tell != nil && a != nil {
					t.Logf("%s counted: %s", a.node.Name, s.col.tell(r, a.node))
				}
			}
			s.keep(t)
		}
	}()
	r.ensureAgents()
	c.run(r)
	switch {
	case r.Failed():
	case r.other != "":
		results.set(c, s.col.name, "not meant: "+r.other)
		t.Skip(r.other)
	default:
		results.set(c, s.col.name, "pass")
	}
}

// keep waits for an interrupt where -keep asks for it.
func (s *suite) keep(t *testing.T) {
	if !*keepFlag {
		return
	}
	t.Logf("the lab is kept; enter a host by nsenter --net=/run/netns/%s-HOST (HOST is node-a, a1, outside, …); Ctrl-C removes it", s.lab.Name)
	results.print()
	select {}
}

// run is one case that runs.
type run struct {
	*testing.T
	*suite
	id    int
	world world // as synced last
	other string

	mu      sync.Mutex
	numbers map[string]int // of the case's services
}

// notMeant ends a case about what this backend is not meant to do, with the
// reason.
func (r *run) notMeant(reason string) { r.other = reason }

// must ends the case on an error of the lab itself or of what the case needs.
func (r *run) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// shell runs a shell command on a node and gives what it wrote.
func (r *run) shell(n *netlab.Node, command string) string {
	r.Helper()
	return r.sh(n.Host, "export "+strings.Join(r.env(n), " ")+"; "+command)
}

// sh runs a shell command on a host, also in a cleanup, which a test's own
// context ends before.
func (r *run) sh(h *netlab.Host, command string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), netlab.Patient(20*time.Second))
	defer cancel()
	out, err := h.Run(ctx, "sh", "-c", command)
	r.must(err)
	return out
}

// env is what processes on a node have in their environment. Each node is a
// machine, so it has an xtables lock of its own.
func (s *suite) env(n *netlab.Node) []string {
	return []string{"XTABLES_LOCKFILE=" + filepath.Join(s.locks, n.Name)}
}

// node is a node by name.
func (r *run) node(name string) *netlab.Node {
	for _, n := range r.lab.Nodes {
		if n.Name == name {
			return n
		}
	}
	r.Fatalf("there is no node %q", name)
	return nil
}

// agentOf is the agent on a node.
func (r *run) agentOf(node string) *agent {
	for _, a := range r.agents {
		if a.node.Name == node {
			return a
		}
	}
	r.Fatalf("there is no agent on %q", node)
	return nil
}

// onEach runs f for each node at the same time and gives the errors.
func (r *run) onEach(f func(i int, n *netlab.Node) error) error {
	errs := make([]error, len(r.lab.Nodes))
	var all sync.WaitGroup
	for i, n := range r.lab.Nodes {
		all.Go(func() { errs[i] = f(i, n) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// ensureAgents starts an agent on each node that has none.
func (r *run) ensureAgents() {
	r.Helper()
	r.must(r.onEach(func(i int, n *netlab.Node) error {
		if r.agents[i].alive() {
			return nil
		}
		a, err := startAgent(n, r.col, r.site(n), r.env(n))
		r.agents[i] = a
		return err
	}))
}

// kill ends the agent on a node with SIGKILL.
func (r *run) kill(node string) { r.agentOf(node).process.Kill() }

// restart kills the agent on a node, if it is alive, and starts a new one,
// which knows nothing of the kernel's state. As a supervisor would, it waits
// for the commands that the old one left running.
func (r *run) restart(node string, env ...string) *agent {
	r.Helper()
	return r.restartAt(node, r.site(r.node(node)), env...)
}

// restartAt is restart with something else told about the node.
func (r *run) restartAt(node string, at site, env ...string) *agent {
	r.Helper()
	for i, a := range r.agents {
		if a.node.Name != node {
			continue
		}
		a.process.Kill()
		if !a.process.GroupGone(netlab.Patient(10 * time.Second)) {
			r.Fatalf("commands of the agent on %s do not end", node)
		}
		fresh, err := startAgent(a.node, r.col, at, append(env, r.env(a.node)...))
		r.must(err)
		r.agents[i] = fresh
		return fresh
	}
	r.Fatalf("there is no agent on %q", node)
	return nil
}

// sync makes both nodes forward a world, and reads it back.
func (r *run) sync(w world) {
	r.Helper()
	r.syncAs(false, w)
}

// syncUnknown is sync with prev == nil.
func (r *run) syncUnknown(w world) {
	r.Helper()
	r.syncAs(true, w)
}

func (r *run) syncAs(unknown bool, w world) {
	r.Helper()
	r.world = w
	r.must(r.onEach(func(i int, n *netlab.Node) error { return r.agents[i].sync(unknown, w.snapshot(r, n)) }))
	r.observe()
}

// observe checks that each kernel holds what the world says.
func (r *run) observe() {
	r.Helper()
	for i, n := range r.lab.Nodes {
		r.observeOn(r.agents[i], r.world.snapshot(r, n))
	}
}

func (r *run) observeOn(a *agent, want *dataplane.Snapshot) {
	r.Helper()
	const most = 5
	have, err := a.observe()
	r.must(err)
	diffs := have.Differences(dataplane.Expect(want))
	if len(diffs) > 0 {
		r.Errorf("Observe on %s is not what was synced (%d differences):\n%s", a.node.Name, len(diffs), strings.Join(diffs[:min(len(diffs), most)], "\n"))
	}
}

// syncA syncs node-a alone and gives the backend's error.
func (r *run) syncA(unknown bool, w world) error {
	r.Helper()
	r.world = w
	return r.agentOf("node-a").sync(unknown, w.snapshot(r, r.node("node-a")))
}

package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// walk is the agents that serve the nodes one after the other: every change that
// an operator makes is a step of it.
func walk() []cluster.Agent {
	kubeProxy := func(mode string) cluster.Agent { return cluster.Agent{Name: cluster.KubeProxy, Backend: mode} }
	own := func(backend string) cluster.Agent { return cluster.Agent{Name: cluster.Switchyard, Backend: backend} }
	return []cluster.Agent{
		kubeProxy("iptables"), own("nftables"), own("nftables"), own("ebpf"), own("ebpf"), own("nftables"),
		own("iptables"), own("nftables"), kubeProxy("nftables"),
		own("nftables"), kubeProxy("iptables"), own("ebpf"), kubeProxy("nftables"), own("ebpf"),
		own("iptables"), own("iptables"), kubeProxy("iptables"),
	}
}

// Takeover walks through the agents under load and prints a table of what
// failed. The lab's agent is the first one's predecessor, and not measured. Of the
// steps those from number first on are done, at most count of them.
func Takeover(ctx context.Context, lab *cluster.Lab, first, count int, out io.Writer) error {
	agents := walk()
	if first < 1 || first >= len(agents) || count < 1 {
		return fmt.Errorf("there are steps 1 to %d", len(agents)-1)
	}
	s := &suite{lab: lab}
	defer s.remove(ctx)
	if err := lab.ChangeTo(ctx, agents[first-1]); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	once := s.everyKind()
	for i := range once {
		once[i].to.Count = 1
	}
	if err := s.answering(ctx, "what the load asks for", once); err != nil {
		return err
	}
	_, _ = fmt.Fprint(out, "| from | to | new TCP failed | new UDP failed | TCP held, broken | UDP held, datagrams lost | left over |\n"+
		"|---|---|---|---|---|---|---|\n")
	var errs []error
	for i := first; i < len(agents) && i < first+count; i++ {
		errs = append(errs, s.step(ctx, lab.Agent, agents[i], out))
	}
	return errors.Join(errs...)
}

func (s *suite) step(ctx context.Context, from, to cluster.Agent, out io.Writer) error {
	reports, err := during(ctx, s.everyKind(), func(ctx context.Context) error { return s.lab.ChangeTo(ctx, to) })
	if err != nil {
		return fmt.Errorf("from %s to %s: %w", title(from), title(to), err)
	}
	left, err := s.gone(ctx, from, to)
	if err != nil {
		return err
	}
	var newTCP, newUDP, heldTCP, heldUDP tally
	for _, r := range reports {
		t := map[[2]bool]*tally{
			{false, false}: &newTCP, {false, true}: &newUDP, {true, false}: &heldTCP, {true, true}: &heldUDP,
		}[[2]bool{r.Target.Held, r.Target.UDP}]
		t.add(r)
	}
	heldTCP.perStream = true
	_, _ = fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s | %s |\n", title(from), title(to), newTCP, newUDP, heldTCP, heldUDP, left)
	for _, t := range []tally{newTCP, newUDP, heldTCP, heldUDP} {
		for _, why := range t.why {
			_, _ = fmt.Fprintf(out, "<!-- %s -->\n", why)
		}
	}
	return nil
}

// gone waits a moment for what the old agent left to be removed. What is needed
// for connections under way may stay longer.
func (s *suite) gone(ctx context.Context, from, to cluster.Agent) (string, error) {
	same := from.Name == to.Name && from.Backend == to.Backend
	below := from.Name == cluster.Switchyard && from.Backend == "nftables" &&
		to.Name == cluster.Switchyard && to.Backend == "ebpf" // its packet backend
	if same || below {
		return "-", nil
	}
	const limit = 40 * time.Second
	deadline := time.Now().Add(limit)
	for {
		left, err := s.lab.Left(ctx, from)
		switch {
		case err != nil:
			return "", err
		case left == "":
			return "nothing", nil
		case time.Now().After(deadline):
			return fmt.Sprintf("after %v: %s", limit, strings.SplitN(left, "\n", 2)[0]), nil
		}
		pause(ctx, time.Second)
	}
}

func title(a cluster.Agent) string {
	if a.Name == cluster.KubeProxy {
		return "kube-proxy " + a.Backend
	}
	return "Switchyard " + a.Backend
}

// tally adds up streams of one kind.
type tally struct {
	requests, failed int
	streams, broken  int
	perStream        bool
	why              []string
}

func (t *tally) add(r load.Report) {
	t.requests, t.failed, t.streams = t.requests+r.Requests, t.failed+r.Failed, t.streams+1
	if r.Failed > 0 {
		t.broken++
		t.why = append(t.why, fmt.Sprintf("%s: %d of %d, the first at %s: %s", r.Target.Name, r.Failed, r.Requests,
			r.FirstErrorAt.UTC().Format("15:04:05.000"), r.FirstError))
	}
}

func (t tally) String() string {
	if t.perStream {
		return fmt.Sprintf("%d of %d", t.broken, t.streams)
	}
	return fmt.Sprintf("%d of %d", t.failed, t.requests)
}

// everyKind is new and held connections, TCP and UDP, inside and from outside,
// through Services with both traffic policies.
func (s *suite) everyKind() []stream {
	const rate = 20
	all := append(s.steady(), s.held()...)
	for _, f := range families() {
		first, last := s.lab.Topology.Nodes[0], s.lab.Topology.Nodes[2]
		here := f.pick(s.here.v4, s.here.v6)
		tcp := []stream{
			{s.ext, to(f.pick(first.V4, first.V6), nodeLocal, 0)}, {s.pods[0], to(here, port, 0)}, {s.nodes[0], to(here, port, 0)},
		}
		udp := []stream{
			{s.pods[0], to(f.pick(s.web.v4, s.web.v6), port, 0)}, {s.ext, to(f.pick(last.V4, last.V6), nodeUDP, 0)},
		}
		for i := range udp {
			udp[i].to.UDP = true
		}
		for _, st := range append(tcp, udp...) {
			st.to.Rate = rate
			kept := st
			kept.to.Held, kept.to.Name = true, st.to.Name+" over one connection"
			all = append(all, st, kept)
		}
	}
	for i := range all {
		all[i].to.Name = all[i].from.Name + " to " + all[i].to.Name
		if all[i].to.UDP {
			all[i].to.Name += " UDP"
		}
	}
	return all
}

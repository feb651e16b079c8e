package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// neighbours are other programs that balance Services, with what backends know of
// (rivals), and what else stands in the way.
func (s System) neighbours(ctx context.Context, rivals []Check) []Check {
	var out []Check
	found := func(state State, name, what, advice string) {
		out = append(out, Check{Group: groupNeighbours, Name: name, State: state, Found: what, Advice: advice})
	}
	if pids := s.processes("kube-proxy"); len(pids) > 0 {
		found(Problem, "kube-proxy", "it runs (process "+strings.Join(pids, ", ")+")",
			"two programs balance the same Services: take its DaemonSet off this node")
	}
	if s.KubeProxy != nil {
		left, err := s.KubeProxy(ctx)
		switch {
		case len(left) > 0:
			found(Problem, "kube-proxy's rules", strings.Join(left, "; "),
				"they decide before ours or after them: `switchyard cleanup --kube-proxy` while no agent runs, --take-over, or a restart of the node")
		case err != nil:
			found(Note, "kube-proxy's rules", "could not be looked for: "+reason(err), "run doctor as root, in the node's network namespace")
		}
	}
	out = append(out, rivals...)
	if len(out) == 0 {
		found(OK, "other Service proxies", "none found", "")
	}
	return append(out, s.firewall()...)
}

// firewall tells what drops connections that nobody accepts.
func (s System) firewall() []Check {
	if s.Firewall == nil {
		return nil
	}
	c := Check{Group: groupNeighbours, Name: "host firewall", State: OK, Found: "iptables' FORWARD and INPUT drop nothing by themselves"}
	rules, err := s.Firewall()
	switch {
	case err != nil:
		c.State, c.Found = Problem, err.Error()
		c.Advice = "if FORWARD or INPUT drops what nobody accepts, connections from outside do not reach Services"
	case len(rules) > 0:
		c.State, c.Found = Note, strings.Join(rules, "; ")
		c.Advice = "the agent lets through what is masqueraded (NodePorts, external IPs, load balancers) and health checks; " +
			"accept pods' own addresses where the CNI does not: Services with policy Local and pods' connections need it"
	}
	return []Check{c}
}

// processes are the ids of the processes of a name.
func (s System) processes(name string) []string {
	comms, _ := filepath.Glob(s.Root + "/proc/[0-9]*/comm") // the pattern is right
	var pids []string
	for _, path := range comms {
		b, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(b)) == name {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

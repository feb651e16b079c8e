package cluster

import (
	"context"
	"errors"
	"net/netip"
)

// Names of the agents that the lab can run.
const (
	Switchyard = "switchyard"
	KubeProxy  = "kube-proxy" // for comparison, and to prove the lab itself
)

// Agent is what makes Services work on the nodes.
type Agent struct {
	Name    string   // Switchyard or KubeProxy
	Backend string   // Switchyard's --backend, kube-proxy's --proxy-mode
	Flags   []string // more of its flags, as they are
	// Process runs Switchyard as a program on each node, as kube-proxy runs, and
	// not as a DaemonSet by the manifests, whose folder is Manifests.
	Process bool
	// TakeOver runs the DaemonSet where nodes have agentLabel, with the rights of
	// all backends, to end what another agent left.
	TakeOver  bool
	Manifests string
}

// args is the agent's command line on n. Both know these flags by the same name.
// cgroup is the node's own, in the machine's tree.
func (a Agent) args(program, kubeconfig, cgroup string, n Node, t Topology) []string {
	line := []string{program, "run", "--backend=" + a.Backend, "--ebpf-cgroup-root=" + cgroup}
	if a.Name == KubeProxy {
		// The limits of connection tracking belong to the machine's own
		// namespace: a node of the lab may not write them.
		line = []string{program, "--proxy-mode=" + a.Backend, "--conntrack-max-per-core=0"}
	}
	listen := func(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }
	line = append(line,
		"--kubeconfig="+kubeconfig,
		"--hostname-override="+n.Name,
		"--cluster-cidr="+pair(t.Pods4, t.Pods6),
		"--healthz-bind-address="+listen(netip.IPv4Unspecified(), HealthPort),
		"--metrics-bind-address="+listen(netip.AddrFrom4([4]byte{127, 0, 0, 1}), metricsPort),
	)
	return append(line, a.Flags...)
}

// ready is where the agent says that the kernel holds what it should.
func (a Agent) ready() string {
	if a.Name == KubeProxy {
		return "/healthz" // it has nothing else, and answers after its first sync
	}
	return "/readyz"
}

// StartAgent starts the agent on n and waits until it says that it has
// programmed the node.
func (l *Lab) StartAgent(ctx context.Context, n Node) error {
	if l.IsDaemonSet() { // kubelet starts it
		return l.agentReady(ctx, n, func() bool { return true })
	}
	line, err := l.onNode(n, l.Agent.args(l.bin(l.Agent.Name), l.kubeconfig("agent"), l.cgroups.Path(n.group()), n, l.Topology)...)
	if err != nil {
		return err
	}
	if err := l.start(n.system(), agentOn(n), line); err != nil {
		return err
	}
	return l.agentReady(ctx, n, func() bool { return l.programs.Alive(agentOn(n)) })
}

// Repair starts the API server and the agents that do not run, for instance
// after a test that was interrupted.
func (l *Lab) Repair(ctx context.Context) error {
	if !l.programs.Alive(apiserver) {
		if err := l.StartAPIServer(ctx); err != nil {
			return err
		}
	}
	return l.eachNode(func(n Node) error {
		if l.programs.Alive(agentOn(n)) {
			return nil
		}
		return l.StartAgent(ctx, n)
	})
}

// KillAgent ends the agent on n with SIGKILL, as a crash would.
func (l *Lab) KillAgent(ctx context.Context, n Node) error {
	if l.IsDaemonSet() {
		return l.killPod(ctx, n)
	}
	if !l.programs.Alive(agentOn(n)) {
		return errors.New("killing the agent on " + n.Name + ": it does not run")
	}
	return l.programs.Kill(agentOn(n))
}

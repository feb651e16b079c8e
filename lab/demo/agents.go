package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	healthAddr  = "127.0.0.1:10256" // on each node
	metricsAddr = "127.0.0.1:10249"
	readyTime   = 20 * time.Second // most that an agent may take to its first /readyz
	stopTime    = 3 * time.Second  // most that it may take to end by itself
	logLines    = 12               // of an agent in trouble
)

// agents are the processes of Switchyard, one on each node.
type agents struct {
	binary, backend, dir string

	mu      sync.Mutex
	stopped bool
	all     []*agentProcess
}

type agentProcess struct {
	*netlab.Program
	node *netlab.Node
}

// start starts the agent on a node.
func (a *agents) start(node *netlab.Node, manifests string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return errors.New("the demo is over")
	}
	var cidrs []string
	for _, c := range netlab.ClusterCIDRs() {
		cidrs = append(cidrs, c.String())
	}
	cmd := exec.Command(a.binary, append([]string{"run", "--backend=" + a.backend, "--manifests=" + manifests,
		"--hostname-override=" + node.Name, "--cluster-cidr=" + strings.Join(cidrs, ","),
		"--socket=" + filepath.Join(a.dir, node.Name+".sock"),
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr}, ebpfFlags(node)...)...)
	p, err := node.StartProgram(cmd, filepath.Join(a.dir, node.Name+".log"))
	if err != nil {
		return err
	}
	a.all = append(a.all, &agentProcess{p, node})
	return nil
}

// ebpfFlags keep the nodes apart, which share a kernel here: a real node needs
// none of them.
func ebpfFlags(node *netlab.Node) []string {
	return []string{
		"--ebpf-pin-dir=" + node.PinDir,
		"--ebpf-cgroup-root=" + node.CgroupRoot,
	}
}

// stop ends all agents. It may be called more than once.
func (a *agents) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	for _, p := range a.all {
		p.Terminate()
	}
	patience, cancel := context.WithTimeout(context.Background(), netlab.Patient(stopTime))
	defer cancel()
	for _, p := range a.all {
		p.End(patience)
	}
	a.all = nil
}

// ready waits until every agent says that its node's kernel forwards what is wanted.
func (a *agents) ready(ctx context.Context) error {
	a.mu.Lock()
	all := a.all
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, netlab.Patient(readyTime))
	defer cancel()
	for _, p := range all {
		if err := p.ready(ctx); err != nil {
			return fmt.Errorf("the agent on %s: %w; the end of its log:\n%s", p.node.Name, err, p.LastLines(logLines))
		}
	}
	return nil
}

func (p *agentProcess) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("never asked")
	for {
		select {
		case <-p.Exited():
			return errors.New("it ended by itself")
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", last)
		case <-tick.C:
		}
		if _, last = p.node.Get(ctx, healthAddr, "/readyz"); last == nil {
			return nil
		}
	}
}

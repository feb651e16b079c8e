package cluster

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// agentLabel is what a node has that is Switchyard's, while a cluster goes over
// from kube-proxy, or back, node by node.
const agentLabel = "switchyard.io/agent"

// ChangeTo has another agent serve the nodes, one node after the other, as
// docs/install.md tells an operator to.
func (l *Lab) ChangeTo(ctx context.Context, to Agent) error {
	from := l.Agent
	to.Manifests, to.TakeOver = from.Manifests, true
	l.Agent = to
	switch {
	case to.Name == Switchyard && from.Name == Switchyard:
		return l.Apply(ctx)
	case to.Name == Switchyard:
		return l.replaceKubeProxy(ctx)
	case from.Name == KubeProxy:
		return l.eachInTurn(func(n Node) error {
			return errors.Join(l.programs.Stop(agentOn(n), stopTime), l.StartAgent(ctx, n))
		})
	}
	return l.backToKubeProxy(ctx)
}

const stopTime = 10 * time.Second

func (l *Lab) eachInTurn(do func(Node) error) error {
	for _, n := range l.Topology.Nodes {
		if err := do(n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

func (l *Lab) replaceKubeProxy(ctx context.Context) error {
	if err := l.Apply(ctx); err != nil {
		return err
	}
	return l.eachInTurn(func(n Node) error {
		if err := l.programs.Stop(agentOn(n), stopTime); err != nil {
			return err
		}
		if _, err := l.Kubectl(ctx, nil, "label", "node", n.Name, agentLabel+"=yes", "--overwrite"); err != nil {
			return err
		}
		return l.agentReady(ctx, n, func() bool { return true })
	})
}

func (l *Lab) backToKubeProxy(ctx context.Context) error {
	return l.eachInTurn(func(n Node) error {
		if _, err := l.Kubectl(ctx, nil, "label", "node", n.Name, agentLabel+"-"); err != nil {
			return err
		}
		const limit = 30 * time.Second
		err := Wait(ctx, "the agent's pod to go", limit, func(ctx context.Context) error {
			pods, err := l.Pods(ctx, agentNamespace, agentSelector)
			for _, p := range pods {
				if p.Node == n.Name {
					err = errors.Join(err, errors.New(p.Name+" is there"))
				}
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := l.StartAgent(ctx, n); err != nil {
			return err
		}
		if err := l.kubeProxySynced(ctx, n); err != nil {
			return err
		}
		return l.startCleanup(n)
	})
}

// startCleanup removes what Switchyard left on n, once the connections are over
// that need it.
func (l *Lab) startCleanup(n Node) error {
	line, err := l.onNode(n, l.bin(Switchyard), "cleanup", "--drain=15m")
	if err != nil {
		return err
	}
	return l.start(n.system(), n.Name+"-cleanup", line)
}

// kubeProxySynced waits until kube-proxy has written its rules of both families.
// Its /healthz answers before that.
func (l *Lab) kubeProxySynced(ctx context.Context, n Node) error {
	client := httpClient(n.Namespace(), nil)
	defer client.CloseIdleConnections()
	const limit = 30 * time.Second
	return Wait(ctx, "kube-proxy's rules on "+n.Name, limit, func(ctx context.Context) error {
		body, err := get(ctx, client, fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsPort))
		if err != nil {
			return err
		}
		const metric = `(?m)^kubeproxy_sync_proxy_rules_last_timestamp_seconds\{ip_family="IPv[46]"\} [1-9]`
		if found := regexp.MustCompile(metric).FindAll(body, -1); len(found) != 2 {
			return fmt.Errorf("it has written those of %d families", len(found))
		}
		return nil
	})
}

// Left is what is still on the nodes of an agent that does not serve them any
// more, in the words of the programs that show it.
func (l *Lab) Left(ctx context.Context, of Agent) (string, error) {
	show, mark := "iptables-save; ip6tables-save", "SWITCHYARD"
	switch {
	case of.Name == KubeProxy && of.Backend == "nftables":
		show, mark = "nft list tables", "kube-proxy"
	case of.Name == KubeProxy:
		mark = "KUBE-SVC-"
	case of.Backend == "nftables":
		show, mark = "nft list tables", " switchyard\n"
	case of.Backend == "ebpf":
		show, mark = "find /sys/fs/bpf", "switchyard"
	}
	var left []string
	for _, n := range l.Topology.Nodes {
		line, err := l.onNode(n, "sh", "-c", show)
		if err != nil {
			return "", err
		}
		out, err := exec.CommandContext(ctx, line[0], line[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("running %q on %s: %w", show, n.Name, withStderr(err))
		}
		for text := range strings.Lines(string(out)) {
			if strings.Contains(text, mark) {
				left = append(left, n.Name+": "+strings.TrimSpace(text))
			}
		}
	}
	return strings.Join(left, "\n"), nil
}

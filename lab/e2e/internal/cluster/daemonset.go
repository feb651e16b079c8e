package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed files/kustomization.yaml
var kustomizationTemplate string

// Names that the manifests have.
const (
	// AgentImage is the agent's, without its tag.
	AgentImage     = "switchyard.test/switchyard"
	agentTag       = "lab"
	agentNamespace = "kube-system"
	agentSelector  = "app.kubernetes.io/name=switchyard"
	agentSet       = "daemonset/switchyard"
)

// AgentImageFile is where the agent's image is packed, and AgentImageDir its folder.
func AgentImageFile(dir string) string { return filepath.Join(AgentImageDir(dir), "switchyard.tar") }

// AgentImageDir is the folder of the agent's image.
func AgentImageDir(dir string) string { return filepath.Join(Bin(dir), "image") }

// IsDaemonSet tells whether the agent runs as pods, by the project's manifests.
func (l *Lab) IsDaemonSet() bool { return l.Agent.Name == Switchyard && !l.Agent.Process }

// kustomize writes a kustomization of the lab: an overlay of the project's, with
// this lab's image, API servers and cgroups.
func (l *Lab) kustomize() (string, error) {
	dir := l.path("run", "kustomize")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("writing the agent's manifests: %w", err)
	}
	name, flags := l.Agent.Backend, l.Agent.Flags
	if l.Agent.TakeOver {
		name, flags = "auto", append([]string{"--backend=" + l.Agent.Backend, "--take-over"}, flags...)
	}
	overlay, err := relative(dir, filepath.Join(l.Agent.Manifests, "overlays", name))
	if err != nil {
		return "", fmt.Errorf("writing the agent's manifests: %w", err)
	}
	data := map[string]any{
		"Overlay": overlay, "Image": AgentImage, "Tag": agentTag, "Flags": flags, "Label": "",
		"Cgroups": "/host" + l.cgroups.Path(group),
		// Nobody listens at the first one.
		"Servers": []string{l.Topology.Control4.String() + ":" + strconv.Itoa(apiPort+1), l.apiAddr().String()},
	}
	if l.Agent.TakeOver {
		l.applied++
		data["Label"], data["Applied"] = agentLabel, l.applied
	}
	text, err := render("kustomization.yaml", kustomizationTemplate, data)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), text, 0o644)
}

// relative is the way from a folder to another one, as the kernel goes it.
func relative(from, to string) (string, error) {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return "", err
	}
	if to, err = filepath.EvalSymlinks(to); err != nil {
		return "", err
	}
	return filepath.Rel(from, to)
}

// Apply applies the manifests of the agent, with its image as it is built now, and
// waits until they are rolled out.
func (l *Lab) Apply(ctx context.Context) error {
	if err := l.eachInTurn(func(n Node) error { return l.importFile(ctx, n, AgentImageFile(l.dir)) }); err != nil {
		return fmt.Errorf("import the agent's image: %w", err)
	}
	dir, err := l.kustomize()
	if err != nil {
		return err
	}
	rendered, err := l.Kubectl(ctx, nil, "kustomize", dir)
	if err != nil {
		return err
	}
	// The API server's own opinion of each object and field.
	if _, err := l.Kubectl(ctx, bytes.NewReader(rendered), "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, bytes.NewReader(rendered), "apply", "--validate=strict", "-f", "-"); err != nil {
		return err
	}
	return l.RolledOut(ctx)
}

// RolledOut waits until each node has the agent as it is wanted, and ready.
func (l *Lab) RolledOut(ctx context.Context) error {
	_, err := l.Kubectl(ctx, nil, "rollout", "status", agentSet, "-n", agentNamespace, "--timeout=100s")
	if err == nil {
		return nil
	}
	pods, _ := l.Kubectl(ctx, nil, "describe", "pods", "-n", agentNamespace, "-l", agentSelector)
	logs, _ := l.Kubectl(ctx, nil, "logs", "-n", agentNamespace, "-l", agentSelector, "--tail=15", "--prefix")
	return fmt.Errorf("%w\n%s\n%s", err, pods, logs)
}

// Roll has all agents replaced, one after the other, with an environment variable
// that is another than before.
func (l *Lab) Roll(ctx context.Context, env string) error {
	if _, err := l.Kubectl(ctx, nil, "set", "env", agentSet, "-n", agentNamespace, env); err != nil {
		return err
	}
	return l.RolledOut(ctx)
}

// killPod ends the agent's process on n with SIGKILL. kubelet starts it again.
func (l *Lab) killPod(ctx context.Context, n Node) error {
	pods, err := l.Pods(ctx, agentNamespace, agentSelector)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.Node != n.Name {
			continue
		}
		pid, err := processOf(p, "switchyard")
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	return errors.New("killing the agent on " + n.Name + ": it has no pod")
}

// processOf is a process of p by its program's name.
func processOf(p Pod, program string) (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, fmt.Errorf("finding pod %s: %w", p.Name, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), "/pod"+p.UID+"/") {
			continue
		}
		dir := filepath.Dir(file)
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil && strings.TrimSpace(string(name)) == program {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("finding %s of pod %s: it does not run", program, p.Name)
}

// agentReady waits until the agent on n says that the node is programmed.
func (l *Lab) agentReady(ctx context.Context, n Node, alive func() bool) error {
	client := httpClient(n.Namespace(), nil)
	defer client.CloseIdleConnections()
	const limit = 60 * time.Second // it may itself wait for the Node's addresses
	return Wait(ctx, "the agent on "+n.Name, limit, func(ctx context.Context) error {
		if !alive() {
			return errEnded
		}
		_, err := get(ctx, client, "http://127.0.0.1:"+strconv.Itoa(HealthPort)+l.Agent.ready())
		return err
	})
}

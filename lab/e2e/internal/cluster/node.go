package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
)

//go:embed files/node.sh
var nodeScript string

// CNIPlugins is where Debian's containernetworking-plugins are.
const CNIPlugins = "/usr/lib/cni"

// mountPoints are folders that kubelet and the CNI plugins use by name. Each
// node sees one of its own there: see files/node.sh.
func mountPoints() []string {
	return []string{"/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods"}
}

func containerdOn(n Node) string { return n.Name + "-containerd" }
func kubeletOn(n Node) string    { return n.Name + "-kubelet" }
func agentOn(n Node) string      { return n.Name + "-agent" }

// startContainerd starts n's containerd in a new mount namespace, which the
// node's other programs then share, and imports the image.
func (l *Lab) startContainerd(ctx context.Context, n Node) error {
	files := func(parts ...string) string { return l.path(append([]string{"nodes", n.Name}, parts...)...) }
	if err := os.MkdirAll(files("cni"), 0o755); err != nil {
		return fmt.Errorf("preparing %s: %w", n.Name, err)
	}
	config, err := render("containerd.toml", containerdTemplate, map[string]string{
		"Root": files("containerd"), "Image": Image, "CNIPlugins": CNIPlugins, "CNIConfig": files("cni"),
	})
	if err != nil {
		return err
	}
	cni, err := cniConfig(n)
	if err != nil {
		return fmt.Errorf("preparing %s: %w", n.Name, err)
	}
	kubelet, err := render("kubelet.yaml", kubeletTemplate, map[string]string{
		"Resolv": files("resolv.conf"), "Cgroup": n.group(),
	})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"containerd.toml": config, "kubelet.yaml": kubelet, "node.sh": []byte(nodeScript),
		"cni/10-lab.conflist": cni, "resolv.conf": nil,
	} {
		if err := os.WriteFile(files(name), data, 0o644); err != nil {
			return fmt.Errorf("preparing %s: %w", n.Name, err)
		}
	}
	err = l.start(n.system(), containerdOn(n), []string{
		"nsenter", "--net=" + network.Path(n.Namespace()), "--",
		"unshare", "--mount", "--propagation=private", "--",
		"sh", files("node.sh"), files("root"), strings.Join(mountPoints(), " "),
		"containerd", "--config", files("containerd.toml"),
	})
	if err != nil {
		return err
	}
	return l.importImage(ctx, n)
}

func (l *Lab) importImage(ctx context.Context, n Node) error {
	const limit = 60 * time.Second
	err := Wait(ctx, "containerd on "+n.Name, limit, func(ctx context.Context) error {
		// Until node.sh has become containerd, the node's mounts are not in
		// place, and ctr could meet a containerd of the machine itself.
		r, alive := l.programs.Find(containerdOn(n))
		if !alive {
			return errEnded
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.PID))
		if err != nil {
			return err
		}
		if string(name) != "containerd\n" {
			return fmt.Errorf("the node's mounts are not ready: %q still runs", name)
		}
		return l.run(ctx, n, "ctr", "--connect-timeout=1s", "version")
	})
	if err != nil {
		return err
	}
	return l.importFile(ctx, n, ImageFile(l.dir))
}

func (l *Lab) importFile(ctx context.Context, n Node, file string) error {
	const limit = 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return l.run(ctx, n, "ctr", "--namespace=k8s.io", "images", "import", file)
}

// run runs a short command on n.
func (l *Lab) run(ctx context.Context, n Node, args ...string) error {
	line, err := l.onNode(n, args...)
	if err != nil {
		return err
	}
	if _, err := exec.CommandContext(ctx, line[0], line[1:]...).Output(); err != nil {
		return fmt.Errorf("running %s on %s: %w", args[0], n.Name, withStderr(err))
	}
	return nil
}

func (l *Lab) startKubelet(n Node) error {
	line, err := l.onNode(n, l.bin("kubelet"),
		"--config="+l.path("nodes", n.Name, "kubelet.yaml"),
		"--kubeconfig="+l.kubeconfig(n.Name),
		"--hostname-override="+n.Name, "--node-ip="+pair(n.V4, n.V6))
	if err != nil {
		return err
	}
	return l.start(n.system(), kubeletOn(n), line)
}

// registerNodes makes the Node objects, so that each has the pod ranges and the
// zone of the address plan whichever kubelet reports first.
func (l *Lab) registerNodes(ctx context.Context) error {
	objects, err := render("nodes.yaml", nodesTemplate, l.Topology.Nodes)
	if err != nil {
		return err
	}
	_, err = l.Kubectl(ctx, bytes.NewReader(objects), "create", "-f", "-")
	return err
}

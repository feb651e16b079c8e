package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
)

// ErrUp says that a lab is running already.
var ErrUp = errors.New("a lab is up already (take it down first)")

// Up starts everything and returns when Pods can be scheduled on all nodes and
// Services work. What it started stays after an error: call Down.
func (l *Lab) Up(ctx context.Context) error {
	if err := l.preflight(); err != nil {
		return err
	}
	if err := l.step("namespaces, cgroups, certificates", l.prepare); err != nil {
		return err
	}
	if err := l.step("etcd and kube-apiserver; containerd with its image on each node", func() error {
		return parallel(
			func() error {
				if err := l.startEtcd(); err != nil {
					return err
				}
				return l.StartAPIServer(ctx)
			},
			func() error {
				return l.eachNode(func(n Node) error { return l.startContainerd(ctx, n) })
			},
		)
	}); err != nil {
		return err
	}
	if err := l.step("Node objects, kube-controller-manager, kube-scheduler, kubelets", func() error {
		if err := l.registerNodes(ctx); err != nil {
			return err
		}
		return errors.Join(l.startControllers(), l.eachNode(l.startKubelet))
	}); err != nil {
		return err
	}
	if err := l.step(fmt.Sprintf("%s (%s) on each node", l.Agent.Name, l.Agent.Backend), func() error {
		if l.IsDaemonSet() {
			return l.Apply(ctx)
		}
		return l.eachNode(func(n Node) error { return l.StartAgent(ctx, n) })
	}); err != nil {
		return err
	}
	return l.step("nodes Ready", func() error {
		const limit = 60 * time.Second
		_, err := l.Kubectl(ctx, nil, "wait", "--for=condition=Ready", "node", "--all", "--timeout="+limit.String())
		return err
	})
}

// preflight finds what would fail later with a worse message.
func (l *Lab) preflight() error {
	if os.Geteuid() != 0 {
		return errors.New("starting the lab: it has to run as root")
	}
	for _, ns := range l.namespaces() {
		if _, err := os.Stat(network.Path(ns)); err == nil {
			return fmt.Errorf("starting the lab: namespace %s exists: %w", ns, ErrUp)
		}
	}
	var missing []string
	for _, program := range []string{"containerd", "ctr", "etcd", "nsenter", "runc", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	for _, plugin := range []string{"host-local", "loopback", "ptp"} {
		if _, err := os.Stat(filepath.Join(CNIPlugins, plugin)); err != nil {
			missing = append(missing, "CNI plugin "+plugin)
		}
	}
	if missing != nil {
		return fmt.Errorf("starting the lab: not installed: %s (see lab/e2e/packages.txt)", strings.Join(missing, ", "))
	}
	needed := []string{l.bin("kube-apiserver"), ImageFile(l.dir)}
	if l.IsDaemonSet() {
		needed = append(needed, AgentImageFile(l.dir))
	} else {
		needed = append(needed, l.bin(l.Agent.Name))
	}
	for _, program := range needed {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("starting the lab: %w (run the verb build first)", err)
		}
	}
	return nil
}

func (l *Lab) namespaces() []string {
	all := []string{Control, Outside}
	for _, n := range l.Topology.Nodes {
		all = append(all, n.Namespace())
	}
	return all
}

// prepare makes what the programs run in.
func (l *Lab) prepare() error {
	if err := l.forget("log"); err != nil {
		return err
	}
	for _, dir := range []string{"run", "log"} {
		if err := os.MkdirAll(l.path(dir), 0o755); err != nil {
			return fmt.Errorf("preparing the lab: %w", err)
		}
	}
	if err := l.makeMountPoints(); err != nil {
		return err
	}
	if err := network.CreateHub(l.Topology.hub()); err != nil {
		return err
	}
	for _, leaf := range l.Topology.leaves() {
		if err := network.CreateLeaf(Control, leaf); err != nil {
			return err
		}
	}
	groups := []string{group, controlGroup()}
	for _, n := range l.Topology.Nodes {
		groups = append(groups, n.group(), n.system())
	}
	for _, g := range groups {
		if err := l.cgroups.Create(g); err != nil {
			return err
		}
	}
	if err := l.cgroups.Favor(group); err != nil {
		return err
	}
	return l.identities()
}

// made lists the mount points that the machine did not have before.
func (l *Lab) made() string { return l.path("run", "made") }

// makeMountPoints makes what nodes mount their own folders on, and notes which
// of it Down has to remove.
func (l *Lab) makeMountPoints() error {
	var made []string
	for _, dir := range mountPoints() {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			made = append(made, dir)
		}
	}
	if err := os.WriteFile(l.made(), []byte(strings.Join(made, "\n")), 0o644); err != nil {
		return fmt.Errorf("preparing the lab: %w", err)
	}
	for _, dir := range made {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("preparing the lab: %w", err)
		}
	}
	return nil
}

// removeMountPoints spares what is not empty: the lab never writes there.
func (l *Lab) removeMountPoints() error {
	made, err := os.ReadFile(l.made())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the nodes' mount points: %w", err)
	}
	for _, dir := range strings.Fields(string(made)) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the nodes' mount points: %w", err)
		}
	}
	return nil
}

// Down ends all that Up started and removes all that it made, except for the
// logs and the built programs. It is no error if nothing is there.
func (l *Lab) Down() error {
	const limit = 30 * time.Second
	records, err := l.programs.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		errs = append(errs, l.programs.Kill(r.Name))
	}
	// Containers and their helpers were started by containerd. They are in the
	// lab's cgroup, and so is nothing else.
	errs = append(errs, l.cgroups.Kill(group, limit), l.cgroups.Remove(group))
	for _, ns := range l.namespaces() {
		errs = append(errs, network.Delete(ns))
	}
	errs = append(errs, l.removeMountPoints())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("taking the lab down: %w", err)
	}
	return l.forget("run", "etcd", "nodes", "pki")
}

// forget removes folders of the lab's state. It refuses where something is
// still mounted below one, because removing it would reach through the mount.
func (l *Lab) forget(names ...string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("removing the lab's state: %w", err)
	}
	for _, name := range names {
		if dir := l.path(name); strings.Contains(string(mounts), " "+dir+"/") {
			return fmt.Errorf("removing the lab's state: something is mounted below %s", dir)
		}
		if err := os.RemoveAll(l.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the lab's state: %w", err)
		}
	}
	return nil
}

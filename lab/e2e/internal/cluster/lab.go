package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cgroup"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/process"
)

// Lab is one cluster with its state on disk.
type Lab struct {
	Topology Topology
	Agent    Agent

	dir      string
	out      io.Writer
	cgroups  cgroup.Tree
	programs process.Set
	applied  int // how often the agent's manifests were, so that each time rolls its pods
}

// Open gives the lab whose state is in dir, running or not. Progress is written
// to out.
func Open(dir string, agent Agent, out io.Writer) (*Lab, error) {
	tree, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	l := &Lab{
		Topology: DefaultTopology(), Agent: agent,
		dir: dir, out: out, cgroups: tree,
		programs: process.Set{Records: filepath.Join(dir, "run"), Logs: filepath.Join(dir, "log")},
	}
	return l, nil
}

// Bin is the folder of the programs that the lab runs, below its state.
func Bin(dir string) string { return filepath.Join(dir, "bin") }

func (l *Lab) bin(name string) string { return filepath.Join(Bin(l.dir), name) }

// path is a file or folder of the lab's state.
func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// ImageFile is where the image of every pod is packed.
func ImageFile(dir string) string { return filepath.Join(Bin(dir), "agnhost.tar") }

// Program is one that the lab has started.
type Program struct {
	Name  string
	PID   int
	Alive bool
}

// Programs lists what the lab has started, and whether it still runs.
func (l *Lab) Programs() ([]Program, error) {
	records, err := l.programs.List()
	if err != nil {
		return nil, err
	}
	var all []Program
	for _, r := range records {
		all = append(all, Program{r.Name, r.PID, l.programs.Alive(r.Name)})
	}
	return all, nil
}

// start runs a program in a cgroup of the lab.
func (l *Lab) start(group, name string, args []string) error {
	if err := l.programs.Start(process.Spec{Name: name, Args: args, Cgroup: l.cgroups.Path(group)}); err != nil {
		return err
	}
	// A process starts in a v2 group, but has to be moved into v1 groups. So far
	// it is nsenter, which has no children yet.
	r, _ := l.programs.Find(name)
	return cgroup.Join(r.PID, l.cgroups.V1Paths(group)...)
}

// step does one part of a longer task and says how long it took.
func (l *Lab) step(name string, do func() error) error {
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(l.out, "  %5.1fs  %s\n", time.Since(began).Seconds(), name)
	return nil
}

// parallel does all of jobs at once and gives all of their errors.
func parallel(jobs ...func() error) error {
	errs := make([]error, len(jobs))
	var all sync.WaitGroup
	for i, job := range jobs {
		all.Go(func() { errs[i] = job() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// eachNode does the same on every node at once.
func (l *Lab) eachNode(do func(Node) error) error {
	var jobs []func() error
	for _, n := range l.Topology.Nodes {
		jobs = append(jobs, func() error { return do(n) })
	}
	return parallel(jobs...)
}

// errEnded says that a program will not come up, so that waiting is in vain.
var errEnded = errors.New("the program has ended; see its log")

// Wait calls probe until it succeeds, at most for limit. Its error is the last
// that probe gave before the time was up.
func Wait(ctx context.Context, what string, limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		if errors.Is(err, errEnded) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s (at most %v): %w", what, limit, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// inControl is a command line that runs args beside the API server.
func inControl(args ...string) []string {
	return append([]string{"nsenter", "--net=" + network.Path(Control), "--"}, args...)
}

// onNode is a command line that runs args on n, once containerd runs there.
func (l *Lab) onNode(n Node, args ...string) ([]string, error) {
	r, alive := l.programs.Find(containerdOn(n))
	if !alive {
		return nil, fmt.Errorf("entering %s: its containerd does not run", n.Name)
	}
	enter := []string{
		"nsenter", "--net=" + network.Path(n.Namespace()), fmt.Sprintf("--mount=/proc/%d/ns/mnt", r.PID), "--",
	}
	return append(enter, args...), nil
}

// Enter is the command line and environment of a program run by hand: beside
// the API server, on a node, or outside, as place says.
func (l *Lab) Enter(place string, args []string) ([]string, []string, error) {
	env := append(os.Environ(),
		"KUBECONFIG="+l.kubeconfig("admin"),
		"PATH="+Bin(l.dir)+":"+os.Getenv("PATH"),
		"CONTAINERD_ADDRESS=/run/containerd/containerd.sock", "CONTAINERD_NAMESPACE=k8s.io",
		fmt.Sprintf("PS1=%s# ", place))
	switch place {
	case "control":
		return inControl(args...), env, nil
	case "ext":
		return append([]string{"nsenter", "--net=" + network.Path(Outside), "--"}, args...), env, nil
	}
	for _, n := range l.Topology.Nodes {
		if n.Name == place {
			enter, err := l.onNode(n, args...)
			return enter, env, err
		}
	}
	return nil, nil, fmt.Errorf("entering %q: no such place; there are control, ext and the nodes", place)
}

// Kubectl runs kubectl as the cluster's administrator and gives its output.
func (l *Lab) Kubectl(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	line := inControl(append([]string{l.bin("kubectl"), "--kubeconfig", l.kubeconfig("admin")}, args...)...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdin = stdin
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), withStderr(err))
	}
	return out, nil
}

func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}

// Tails writes the end of every log to out, for a failure's report.
func (l *Lab) Tails(out io.Writer, lines int) {
	logs, _ := filepath.Glob(l.path("log", "*.log")) // fails only for a bad pattern
	for _, file := range logs {
		data, err := os.ReadFile(file)
		if err != nil || len(data) == 0 {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		_, _ = fmt.Fprintf(out, "\n== %s\n%s\n", file, strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
}

// Command e2e is the end-to-end lab: a real Kubernetes cluster on one machine,
// whose Services the agent makes work, and checks that send requests through it.
//
// README.md tells how to use it by hand.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/build"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/checks"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", err)
		}
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return 0
}

// options are the flags that all verbs share.
type options struct {
	agent cluster.Agent
	dir   string
	only  string
	keep  bool
}

func command() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "e2e",
		Short:         "A real Kubernetes cluster on this machine, to test the agent with",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.agent.Name, "agent", cluster.Switchyard, "what makes Services work: switchyard or kube-proxy")
	flags.StringVar(&o.agent.Backend, "backend", "iptables", "switchyard's --backend, or kube-proxy's --proxy-mode")
	flags.StringArrayVar(&o.agent.Flags, "agent-flag", nil,
		"another flag for the agent, for instance --agent-flag=--iptables-mode=legacy; may be repeated")
	flags.BoolVar(&o.agent.Process, "process", false, "run switchyard as a program on each node, not as a DaemonSet by the manifests")
	flags.StringVar(&o.dir, "dir", os.Getenv("SWITCHYARD_E2E_DIR"), "folder of the lab's state (default .cache/e2e of the checkout)")

	test := verb("test", "check a running lab", o.withLab(test))
	all := verb("all", "build, up, test and down", o.withLab(all))
	for _, c := range []*cobra.Command{test, all} {
		c.Flags().StringVar(&o.only, "run", "", "do only the checks whose name contains this")
	}
	all.Flags().BoolVar(&o.keep, "keep", false, "leave the lab up")
	root.AddCommand(
		verb("build", "compile Kubernetes and the agent", o.withLab(compile)),
		verb("up", "start the lab", o.withLab(up)),
		test,
		takeover(&o),
		verb("down", "end what up started, and remove it", o.withLab(down)),
		all,
		verb("status", "show what runs", o.withLab(status)),
		shell(&o), kubectl(&o), client(),
	)
	return root
}

func verb(use, short string, do func(*cobra.Command, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: do}
}

// withLab opens the lab that the flags name for do.
func (o *options) withLab(do func(context.Context, *options, *cluster.Lab) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		lab, err := o.open()
		if err != nil {
			return err
		}
		return do(cmd.Context(), o, lab)
	}
}

func (o *options) open() (*cluster.Lab, error) {
	switch o.agent.Name {
	case cluster.Switchyard:
	case cluster.KubeProxy:
		if o.agent.Backend == "auto" { // which it does not know
			o.agent.Backend = "iptables"
		}
	default:
		return nil, fmt.Errorf("--agent: %q is neither %s nor %s", o.agent.Name, cluster.Switchyard, cluster.KubeProxy)
	}
	repo, err := checkout()
	if err != nil {
		return nil, err
	}
	o.agent.Manifests = filepath.Join(repo, "deploy", "kustomize")
	dir := o.dir
	if dir == "" {
		dir = filepath.Join(repo, ".cache", "e2e")
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	o.dir = dir
	return cluster.Open(dir, o.agent, os.Stdout)
}

// checkout is the folder of the project: the one above that has a cmd/switchyard.
func checkout() (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "switchyard")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("finding the checkout: %s is not in one", here)
		}
	}
}

func compile(ctx context.Context, o *options, _ *cluster.Lab) error {
	fmt.Println("build")
	repo, err := checkout()
	if err != nil {
		return err
	}
	b := build.Builder{
		Repo: repo, Bin: cluster.Bin(o.dir), Out: os.Stdout,
		ImageFile: cluster.ImageFile(o.dir), ImageName: cluster.Image,
	}
	if err := b.Kubernetes(ctx); err != nil {
		return err
	}
	switch {
	case o.agent.Name != cluster.Switchyard:
		return nil
	case o.agent.Process:
		return b.Agent(ctx)
	}
	if err := b.Agent(ctx); err != nil { // for a clean-up by hand
		return err
	}
	return b.Image(ctx, cluster.AgentImageDir(o.dir), cluster.AgentImage)
}

func up(ctx context.Context, _ *options, lab *cluster.Lab) error {
	fmt.Println("up")
	err := lab.Up(ctx)
	if err != nil && !errors.Is(err, cluster.ErrUp) && ctx.Err() == nil {
		const lines = 15
		lab.Tails(os.Stderr, lines)
	}
	return err
}

func test(ctx context.Context, o *options, lab *cluster.Lab) error {
	fmt.Println("test")
	return checks.Run(ctx, lab, o.only, os.Stdout)
}

// takeover walks through agents under load.
func takeover(o *options) *cobra.Command {
	first, count := 1, 100
	cmd := verb("takeover", "change from one agent to another under load, and print a table of what failed",
		o.withLab(func(ctx context.Context, _ *options, lab *cluster.Lab) error {
			return checks.Takeover(ctx, lab, first, count, os.Stdout)
		}))
	cmd.Flags().IntVar(&first, "first", first, "the first step of the walk to do")
	cmd.Flags().IntVar(&count, "count", count, "how many to do")
	return cmd
}

func down(_ context.Context, _ *options, lab *cluster.Lab) error {
	fmt.Println("down")
	return lab.Down()
}

// all leaves nothing behind, however it ends.
func all(ctx context.Context, o *options, lab *cluster.Lab) (err error) {
	if err := compile(ctx, o, lab); err != nil {
		return err
	}
	if err := lab.Down(); err != nil { // what an earlier run left
		return err
	}
	if !o.keep {
		defer func() { err = errors.Join(err, down(ctx, o, lab)) }()
	}
	if err := up(ctx, o, lab); err != nil {
		return err
	}
	return test(ctx, o, lab)
}

func status(ctx context.Context, _ *options, lab *cluster.Lab) error {
	programs, err := lab.Programs()
	if err != nil {
		return err
	}
	if len(programs) == 0 {
		fmt.Println("no lab is up")
		return nil
	}
	for _, p := range programs {
		word := "runs"
		if !p.Alive {
			word = "has ended"
		}
		fmt.Printf("%-26s %7d  %s\n", p.Name, p.PID, word)
	}
	out, err := lab.Kubectl(ctx, nil, "get", "nodes,pods,services", "-A", "-o", "wide")
	fmt.Printf("\n%s", out)
	return err
}

func shell(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shell PLACE [PROGRAM ARGS...]",
		Short: "run a program, or a shell, at control, ext, node1, node2 or node3",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			place, program := args[0], args[1:]
			if len(program) == 0 {
				program = []string{"bash", "--norc"}
			}
			return o.become(place, program)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows PLACE is the program's
	return cmd
}

func kubectl(o *options) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ARGS...",
		Short:              "run kubectl as the cluster's administrator",
		DisableFlagParsing: true, // they are kubectl's
		RunE: func(_ *cobra.Command, args []string) error {
			return o.become("control", append([]string{"kubectl"}, args...))
		},
	}
}

// become replaces this program by another one at place.
func (o *options) become(place string, args []string) error {
	lab, err := o.open()
	if err != nil {
		return err
	}
	line, env, err := lab.Enter(place, args)
	if err != nil {
		return err
	}
	return replace(line, env)
}

// client is what the checks start at other places to send requests from there.
func client() *cobra.Command {
	return &cobra.Command{
		Use: load.Verb, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return load.Serve(cmd.Context(), os.Stdin, os.Stdout)
		},
	}
}

// replace looks the program up first: exec wants its path.
func replace(line, env []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, line, env); err != nil {
		return fmt.Errorf("running %s: %w", line[0], err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/hostfirewall"
	"github.com/switchyard-io/switchyard/dataplane/kubeproxy"
	"github.com/switchyard-io/switchyard/dataplane/lock"
	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

func cleanupCommand() *cobra.Command {
	o := options()
	var verbose, kubeProxy, dryRun, force bool
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel all that Switchyard put there, and nothing else",
		Long: `Remove from the kernel all that Switchyard put there, and nothing else.

Stop the agent first. While it runs, cleanup removes nothing and says which
process it is, because the agent would put everything back; --force removes all
the same, and Services are not served until the agent notices. Once the agent's
process has ended, in whatever way, nothing is left that keeps cleanup from
running. What was removed is printed. --dry-run prints it and removes nothing.
Without --backend, what any backend left is removed. The translation of sockets,
which may be on top of any backend, is always removed, and first.

Connections through Services end, but for those that another proxy on this node
goes on with: kube-proxy does with what the kernel's NAT translates, and sockets
that were translated need nobody. With --drain IPVS, which translates by itself,
serves nothing new at once, and is removed when its connections are over.

With --kube-proxy, what a kube-proxy of any mode left is removed too. While that
runs in this network namespace, it is left alone and cleanup fails.`,
		Args: cobra.NoArgs,
	}
	o.AddBackendFlags(cmd.Flags())
	cmd.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left, too: chains, nftables tables, ipsets and kube-ipvs0")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed, and remove nothing; an agent may run")
	cmd.Flags().BoolVar(&force, "force", false, "remove although an agent runs, which puts everything back")
	cmd.Flags().DurationVar(&drain, "drain", 0, "wait at most this long for the connections that only IPVS can serve")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell what there is nothing of, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if drain < 0 {
			return fmt.Errorf("--drain: %v is less than 0", drain)
		}
		c, err := load(o)
		if err != nil {
			return err
		}
		backend := catalog.Auto
		if cmd.Flags().Changed("backend") {
			backend = c.Backend()
		}
		opts := &slog.HandlerOptions{}
		if verbose {
			opts.Level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, opts))
		if !dryRun && !force {
			held, err := lockForCleanup(cmd.Context(), c)
			if err != nil {
				return err
			}
			defer held.Release()
		}
		if drain > 0 && !dryRun {
			if err := drainConnections(cmd.Context(), log, c, backend, drain); err != nil {
				return err
			}
		}
		return removal{Out: cmd.OutOrStdout(), Log: log, Config: c, Backend: backend, KubeProxy: kubeProxy, DryRun: dryRun}.run(cmd.Context())
	}
	return cmd
}

// lockForCleanup keeps agents from starting during a cleanup, and fails while
// one runs.
func lockForCleanup(ctx context.Context, c *config.Config) (*lock.Lock, error) {
	l, err := lock.Take(ctx, lock.Options{Dir: c.LockDir, As: "cleanup"})
	if held := (*lock.HeldError)(nil); errors.As(err, &held) {
		return nil, fmt.Errorf("nothing is removed, because %w: stop it first", err)
	}
	return l, err
}

// layersOf returns what a backend may put into the kernel, or all backends
// (auto), in the order of removal. The translation of sockets may be on top of any
// backend and comes first: it must not go on by itself.
func layersOf(c *config.Config, backend string) []dataplane.Driver {
	layers := catalog.Layers(c.Backends())
	if backend == catalog.Auto {
		return layers
	}
	names := []string{backend, ebpf.LayerName, hostfirewall.LayerName}
	for _, d := range catalog.Drivers(c.Backends()) {
		if d.Name == backend {
			names = append(names, d.Layers...)
		}
	}
	return slices.DeleteFunc(layers, func(d dataplane.Driver) bool { return !slices.Contains(names, d.Name) })
}

// drainConnections has backends that translate connections by themselves serve
// nothing new, and waits until what they have is over.
func drainConnections(ctx context.Context, log *slog.Logger, c *config.Config, backend string, most time.Duration) error {
	cfg := c.Dataplane(log, dataplane.HostFamilies())
	nobody := func() *dataplane.Node { return &dataplane.Node{} } // only new connections ask about the node
	if err := takeover.Hold(cfg.Families); err != nil {
		log.Warn("connections that IPVS translates may break, as the kernel's NAT cannot be kept", "error", err)
	}
	for _, d := range layersOf(c, backend) {
		drain := takeover.Retire(d, cfg, nobody, most)
		if drain == nil {
			continue
		}
		err := drain(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("backend %s is still there, for its connections, and serves nothing new: run cleanup again", d.Name)
		}
		if err != nil {
			log.Warn("connections are not waited for", "backend", d.Name, "error", err)
		}
	}
	return takeover.Release(cfg.Families)
}

// removal removes what Switchyard left in the kernel, and says what it was.
type removal struct {
	Out       io.Writer
	Log       *slog.Logger
	Config    *config.Config
	Backend   string // one, or all of them (auto)
	KubeProxy bool   // what kube-proxy left, too
	DryRun    bool   // remove nothing
}

func (r removal) run(ctx context.Context) error {
	cfg := dataplane.Config{Log: r.Log, Families: dataplane.HostFamilies()}
	var errs []error
	some := false
	step := func(whose string, find func(context.Context) ([]string, error), remove func() error) {
		found, err := find(ctx)
		if err != nil {
			r.Log.Debug("cannot look for what is left in the kernel", "of", whose, "error", err)
		}
		if !r.DryRun {
			if err := remove(); err != nil {
				errs = append(errs, fmt.Errorf("removing what %s left: %w", whose, err))
				return
			}
		}
		some = some || len(found) > 0
		for _, what := range found {
			_, _ = fmt.Fprintf(r.Out, "%s %s: %s\n", map[bool]string{true: "would remove", false: "removed"}[r.DryRun], whose, what)
		}
	}
	for _, d := range layersOf(r.Config, r.Backend) {
		step(d.Name, d.Find, func() error { return d.Cleanup(ctx, cfg) })
	}
	if r.Backend == catalog.Auto && !r.DryRun {
		errs = append(errs, takeover.Release(cfg.Families))
	}
	if r.KubeProxy {
		step("kube-proxy", kubeproxy.Find, func() error { return kubeproxy.Remove(ctx, r.Log) })
	}
	err := errors.Join(errs...)
	if err == nil && !some {
		_, _ = fmt.Fprintln(r.Out, "There is nothing to remove.")
	}
	return err
}

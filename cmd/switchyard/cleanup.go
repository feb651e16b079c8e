package main

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/agent"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

func cleanupCommand() *cobra.Command {
	o := agent.NewOptions()
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
that were translated need nobody. With --drain, a backend that has connections of
its own accepts no new ones, and is removed once the existing ones have ended.

With --kube-proxy, what a kube-proxy of any mode left is removed too. While that
runs in this network namespace, it is left alone and cleanup fails.`,
		Args: cobra.NoArgs,
	}
	o.AddBackendFlags(cmd.Flags())
	cmd.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left, too: its chains, tables, ipsets and device")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed, and remove nothing; an agent may run")
	cmd.Flags().BoolVar(&force, "force", false, "remove although an agent runs, which puts everything back")
	cmd.Flags().DurationVar(&drain, "drain", 0, "wait at most this long for connections that only the backend itself can serve")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell what there is nothing of, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if drain < 0 {
			return fmt.Errorf("--drain: %v is less than 0", drain)
		}
		c, err := agent.Load(o)
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
		return agent.Cleanup{
			Out: cmd.OutOrStdout(), Log: log, Config: c, Backend: backend, KubeProxy: kubeProxy, DryRun: dryRun, Force: force, Drain: drain,
		}.Run(cmd.Context())
	}
	return cmd
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/kubeproxy"
	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

func cleanupCommand() *cobra.Command {
	o := options()
	var verbose, kubeProxy bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel all that Switchyard put there, and nothing else",
		Long: `Remove from the kernel all that Switchyard put there, and nothing else.

Connections through Services end. Stop the agent first, or it puts everything
back. Without --backend, what any backend left is removed.

With --kube-proxy, what a kube-proxy of any mode left is removed too. Stop it
first, or it puts everything back.`,
		Args: cobra.NoArgs,
	}
	o.AddBackendFlags(cmd.Flags())
	cmd.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left, too: chains, nftables tables, ipsets and kube-ipvs0")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell what there is nothing of, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
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
		return cleanup(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, opts)), catalog.Drivers(c.Backends()), backend, kubeProxy)
	}
	return cmd
}

// cleanup removes what one backend left, or all of them (auto), and if asked
// what kube-proxy left.
func cleanup(ctx context.Context, log *slog.Logger, drivers []dataplane.Driver, backend string, kubeProxy bool) error {
	cfg := dataplane.Config{Log: log, Families: dataplane.HostFamilies()}
	var errs []error
	for _, d := range drivers {
		if backend != catalog.Auto && backend != d.Name {
			continue
		}
		if err := d.Cleanup(ctx, cfg); err != nil {
			errs = append(errs, fmt.Errorf("removing what backend %s left: %w", d.Name, err))
		}
	}
	if backend == catalog.Auto {
		errs = append(errs, takeover.Release(cfg.Families))
	}
	if kubeProxy {
		if err := kubeproxy.Remove(ctx, log); err != nil {
			errs = append(errs, fmt.Errorf("removing what kube-proxy left: %w", err))
		}
	}
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

func cleanupCommand() *cobra.Command {
	var backend string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel all that Switchyard put there, and nothing else",
		Long: `Remove from the kernel all that Switchyard put there, and nothing else.

Connections through Services end. Stop the agent first, or it puts everything
back. Without --backend, what any backend left is removed.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&backend, "backend", catalog.Auto, "only what this backend left")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell what there is nothing of, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		drivers := catalog.Drivers(catalog.Options{})
		if names := catalog.Names(drivers); !slices.Contains(names, backend) {
			return fmt.Errorf("--backend is %q; it can be %s", backend, strings.Join(names, ", "))
		}
		opts := &slog.HandlerOptions{}
		if verbose {
			opts.Level = slog.LevelDebug
		}
		return cleanup(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, opts)), drivers, backend)
	}
	return cmd
}

// cleanup removes what one backend left, or all of them (auto).
func cleanup(ctx context.Context, log *slog.Logger, drivers []dataplane.Driver, backend string) error {
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
	return errors.Join(errs...)
}

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

func cleanupCommand() *cobra.Command {
	var (
		backend backendFlags
		log     logFlags
	)
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel all that Switchyard put there, and nothing else",
		Long: `Remove from the kernel all that Switchyard put there, and nothing else.

Connections through Services end. Stop the agent first, or it puts everything
back. Without --backend, what any backend left is removed.`,
		Args: cobra.NoArgs,
	}
	backend.add(cmd.Flags())
	log.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := backend.check(); err != nil {
			return err
		}
		logger, err := log.logger()
		if err != nil {
			return err
		}
		cfg := dataplane.Config{Log: logger, Families: dataplane.HostFamilies(), MasqueradeBit: backend.masqueradeBit}
		var errs []error
		for _, d := range backend.drivers() {
			if backend.name != catalog.Auto && backend.name != d.Name {
				continue
			}
			if err := d.Cleanup(cmd.Context(), cfg); err != nil {
				errs = append(errs, fmt.Errorf("removing what backend %s left: %w", d.Name, err))
			}
		}
		return errors.Join(errs...)
	}
	return cmd
}

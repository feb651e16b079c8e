package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/bench/cluster"
	"github.com/switchyard-io/switchyard/bench/costs"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// roles returns all that this program does in the hosts of its labs.
func roles() map[string]netlab.Role {
	all := load.Roles()
	maps.Copy(all, costs.Roles())
	maps.Copy(all, cluster.Roles())
	return all
}

func costsCommand() *cobra.Command {
	var baseline, to string
	cmd := &cobra.Command{
		Use:   "costs",
		Short: "Count what no clock measures, and compare it with the last release's",
		Long: `Count what no clock measures, and compare it with the last release's.

These are instructions, rules, messages, system calls, allocations and bytes. A
gated cost that is more than 10 % above the baseline is an error. To accept it,
write the baseline again with --write and commit it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return countCosts(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), baseline, to)
		},
	}
	cmd.Flags().StringVar(&baseline, "baseline", "bench/costs/baseline.json", "the costs to compare with")
	cmd.Flags().StringVar(&to, "write", "", "write what was counted to this file, as the next baseline, and accept what became worse")
	return cmd
}

// countCosts counts, prints the table, and writes the next baseline if it is asked to.
func countCosts(ctx context.Context, w, progress io.Writer, baseline, to string) error {
	old, err := costs.Read(baseline)
	if errors.Is(err, fs.ErrNotExist) && to != "" {
		old, err = &costs.Set{}, nil
	}
	if err != nil {
		return err
	}
	begin := time.Now()
	now, err := costs.Run(ctx, func(format string, args ...any) {
		_, _ = fmt.Fprintf(progress, "%7.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	})
	if err != nil {
		return err
	}
	regressions := costs.Report(w, old, now, baseline)
	if to == "" {
		return regressions
	}
	return now.Write(to)
}

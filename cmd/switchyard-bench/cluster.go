package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/bench/cluster"
)

// clusterCommand measures what a cluster's proxies cost one API server.
func clusterCommand() *cobra.Command {
	var o cluster.Options
	var out string
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Measure what many agents, and as many kube-proxies, cost one API server",
		Long: `Measure what many agents, and as many kube-proxies, cost one API server.

The agents have no kernel to program, the kube-proxies are kubemark's hollow
proxies. A model that is fitted to what was measured says what large clusters
cost, and where the limit is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measureCluster(cmd.Context(), cmd.OutOrStdout(), o, out)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringSliceVar(&o.Kinds, "kinds", nil, "what to compare: "+strings.Join(cluster.Kinds(), ", ")+"; default: all")
	flags.IntSliceVar(&o.Agents, "agents", []int{50, 100, 200, 400}, "how many proxies there are at a time")
	flags.IntVar(&o.MostKubeProxy, "most-kube-proxies", 100, "leave kube-proxy out where there are more: each is a process")
	flags.IntVar(&o.Services, "services", 1000, "how many Services there are, with 10 endpoints each")
	flags.Float64SliceVar(&o.Changes, "changes-per-second", []float64{0, 5, 20}, "how many changes of endpoints a second to make, one after another")
	flags.DurationVar(&o.For, "for", 20*time.Second, "how long to measure each number of changes")
	flags.BoolVar(&o.Restarts, "restarts", true, "also measure a restart of the API server")
	flags.Float64Var(&o.Cores, "cores", 16, "cores of the API server whose limit is told")
	flags.StringVar(&o.Kubernetes, "kubernetes", ".cache/e2e/bin", "directory of kube-apiserver and kubemark")
	flags.StringVar(&out, "out", "bench-results", "directory for cluster.json")
	return cmd
}

// measureCluster runs, prints the tables and writes the result.
func measureCluster(ctx context.Context, w io.Writer, o cluster.Options, out string) error {
	o.Version, o.Log, o.Progress = version, slog.New(slog.DiscardHandler), progress(w)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("making the directory of results: %w", err)
	}
	r, err := cluster.Run(ctx, o)
	if r == nil {
		return err
	}
	return errors.Join(err, cluster.Table(w, r), r.Write(filepath.Join(out, "cluster.json")))
}

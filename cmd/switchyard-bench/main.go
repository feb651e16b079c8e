// Command switchyard-bench is `switchyard bench`: flags and signals. It is a binary of its own, so that the agent does not carry plots and load generators.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/bench"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/internal/netlab"
)

// version is set by the build (-X main.version).
var version = "dev"

func main() {
	netlab.Main(load.Roles())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second one ends the process at once
	cmd := command()
	if err := cmd.ExecuteContext(ctx); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "switchyard bench: %v\n", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o bench.Options
	var out string
	cmd := &cobra.Command{
		Use:           "bench",
		Short:         "Measure the backends beside kube-proxy, on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measure(cmd.Context(), o, out)
		},
	}
	self, _ := os.Executable()
	flags := cmd.Flags()
	flags.BoolVar(&o.Quick, "quick", false, "the most telling part, in 3 minutes")
	flags.StringVar(&out, "out", "bench-results", "directory for the results")
	flags.StringVar(&o.Agent, "agent", filepath.Join(filepath.Dir(self), "switchyard"), "path of switchyard")
	flags.StringVar(&o.Kubernetes, "kubernetes", ".cache/e2e/bin", "directory of kube-apiserver and kube-proxy")
	flags.StringSliceVar(&o.Proxies, "proxies", nil, "what to compare; default: all that works on this machine")
	flags.StringSliceVar(&o.Parts, "parts", nil, "what to measure: "+strings.Join(bench.Parts(), ", ")+"; default: all")
	return cmd
}

// measure runs and writes the results.
func measure(ctx context.Context, o bench.Options, out string) error {
	begin := time.Now()
	o.Version, o.Log = version, slog.New(slog.DiscardHandler)
	o.Progress = func(format string, args ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	r, err := bench.Run(ctx, o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("making the directory of results: %w", err)
	}
	return r.Write(filepath.Join(out, "result.json"))
}

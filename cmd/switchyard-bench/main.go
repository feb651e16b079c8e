// Command switchyard-bench is `switchyard bench`: flags, signals, files. It is a
// binary of its own, so that the agent does not carry load generators and plots.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/bench"
	"github.com/switchyard-io/switchyard/bench/report"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// version is set by the build (-X main.version).
var version = "dev"

func main() {
	netlab.Main(roles())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second one ends the process at once
	if err := command().ExecuteContext(ctx); err != nil {
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
			return measure(cmd.Context(), cmd.OutOrStdout(), o, out)
		},
	}
	self, _ := os.Executable() // "": the flag's default is of no use then
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&o.Quick, "quick", false, "the most telling part, in 4 minutes")
	flags.StringVar(&out, "out", "bench-results", "directory for the results")
	flags.StringSliceVar(&o.Proxies, "proxies", nil, "what to compare, with flags of its own if they follow after a \"+\": "+
		"switchyard-ebpf+socket-lb=off; default: all that works on this machine")
	flags.StringSliceVar(&o.Parts, "parts", nil, "what to measure: "+strings.Join(result.Parts(), ", ")+"; default: all")
	flags.StringVar(&o.Agent, "agent", filepath.Join(filepath.Dir(self), "switchyard"), "path of switchyard")
	flags.StringVar(&o.Kubernetes, "kubernetes", ".cache/e2e/bin", "directory of kube-apiserver and kube-proxy")
	cmd.AddCommand(compareCommand(), reportCommand(), clusterCommand(), costsCommand())
	return cmd
}

// measure runs, prints the table and writes the results.
func measure(ctx context.Context, w io.Writer, o bench.Options, out string) error {
	o.Version, o.Log, o.Progress = version, slog.New(slog.DiscardHandler), progress(w)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("making the directory of results: %w", err)
	}
	r, err := bench.Run(ctx, o)
	if err != nil {
		return err
	}
	if err := report.Table(w, r); err != nil {
		return err
	}
	if err := r.Write(filepath.Join(out, "result.json")); err != nil {
		return err
	}
	if err := report.Write(r, report.Files{Page: filepath.Join(out, "report.md"), Pictures: out, Beside: out}); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(w, "\n%s: report.md, report.html, plots, and result.json for `switchyard bench compare`\n", out)
	return nil
}

// progress returns what prints how far a run is, and how long it has taken.
func progress(w io.Writer) func(format string, args ...any) {
	begin := time.Now()
	return func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%7.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

func compareCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "compare A.json B.json",
		Short: "Tell what changed from one run to another, and what may be chance",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			older, err := result.Read(args[0])
			if err != nil {
				return err
			}
			newer, err := result.Read(args[1])
			if err != nil {
				return err
			}
			return report.Changes(cmd.OutOrStdout(), older, newer)
		},
	}
}

func reportCommand() *cobra.Command {
	var f report.Files
	cmd := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "Write the report of a run again, to another place",
		Long: `Write the report of a run again, to another place: as Markdown, as HTML, and its plots.

What lies beside the result is put into it: notes.md says why figures are missed,
each note under a heading that begins as the figure does, and each file of
sections/ is a further section.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := result.Read(args[0])
			if err != nil {
				return err
			}
			f.Beside = filepath.Dir(args[0])
			return report.Write(r, f)
		},
	}
	cmd.Flags().StringVar(&f.Page, "file", "report.md", "the report; its HTML lies beside it")
	cmd.Flags().StringVar(&f.Pictures, "plots", "plots", "directory for its plots")
	cmd.Flags().StringVar(&f.README, "readme", "", "file that has a block for the shortest table, between <!-- benchmarks: begin --> and end")
	return cmd
}

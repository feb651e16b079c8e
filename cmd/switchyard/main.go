// Command switchyard is the binary: flags, wiring, signals. No logic.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/agent/config"
)

// version is set by the build (-X main.version).
var version = "dev"

func main() {
	// SIGTERM and SIGINT end the process in order; forwarding stays in place. A
	// second one ends it at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, commandLine(os.Args), os.Stdout, os.Stderr))
}

// commandLine is the arguments of a call. Under the name of kube-proxy, which
// has no subcommands, the agent runs: a DaemonSet of kube-proxy's needs another
// image and no change.
func commandLine(args []string) []string {
	if filepath.Base(args[0]) == "kube-proxy" {
		return append([]string{"run"}, args[1:]...)
	}
	return args[1:]
}

// newRoot makes the command with all that are below it.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "switchyard",
		Short:         "The service proxy of a Kubernetes node, in place of kube-proxy",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.AddCommand(runCommand(), cleanupCommand(), versionCommand(), benchCommand())
	root.AddCommand(inspectCommands()...)
	root.SetGlobalNormalizationFunc(config.WithDashes)
	return root
}

// execute runs a command line and returns the exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		if errors.Is(err, errDiffers) || errors.Is(err, errNoBackend) { // it is printed already
			return 1
		}
		// One line, whatever the error is joined of.
		_, _ = fmt.Fprintf(stderr, "switchyard: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	return 0
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	}
}

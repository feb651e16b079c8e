package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// benchProgram is a binary of its own, so that the agent, which runs on every
// node, does not carry load generators and plots.
const benchProgram = "switchyard-bench"

func benchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "bench",
		Short: "Measure the backends beside kube-proxy, on this machine",
		Long: `Measure the backends beside kube-proxy, on this machine.

It makes nodes, pods and clients in network namespaces and changes nothing
outside of them. docs/benchmarks.md tells what is measured and how. The program
switchyard-bench does it, which lies beside this one or in PATH.`,
		Example: `  switchyard bench --quick
  switchyard bench compare before/result.json after/result.json`,
		DisableFlagParsing: true, // they are that program's
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findBench()
			if err != nil {
				return err
			}
			if err := syscall.Exec(path, append([]string{path}, args...), os.Environ()); err != nil {
				return fmt.Errorf("running %s: %w", path, err)
			}
			return nil
		},
	}
}

func findBench() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), benchProgram)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(benchProgram)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; `make bench` builds it", benchProgram, self)
	}
	return path, err
}

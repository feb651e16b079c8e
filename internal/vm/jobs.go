package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// conformance is the package that has columns to choose from.
const conformance = "dataplane/conformance"

// job is one package whose tests run.
type job struct {
	dir     string   // of the package, below the root of the module
	args    []string // of its test binary
	command string   // a shell command instead
}

// name is what the job's files are called.
func (j job) name() string { return strings.ReplaceAll(j.dir, "/", "_") }

// matrix are the packages of the kernel matrix, in the order in which they
// run: those that say in the shortest time what a kernel lacks come first.
func matrix() []string {
	return []string{"dataplane/ebpf/internal/packet", "dataplane/ebpf/internal/terminate", "dataplane/ebpf", "dataplane/iptables", "dataplane/ipvs", conformance}
}

// chosenCases are the cases of the conformance table that run unless others are
// asked for: one or two of each theme. The whole table takes half an hour for
// each column and kernel under emulation; what is left out here depends less on
// the kernel, and runs on this machine's own. "-run ." runs all.
func chosenCases() string {
	return "//(" + strings.Join([]string{
		"internal Cluster, external Cluster; pods told by ClusterCIDR", "internal Local, external Local; pods told by interface prefix",
		"without endpoints every frontend rejects", "an undefined port of a ClusterIP", "no ClusterIP drops",
		"source ranges: others are dropped", "NodePorts follow addresses", "a client stays with its endpoint",
		"hairpin: an endpoint reaches itself", "TCP, UDP and SCTP on one port", "fragments", "checksums",
		"repairs what another program broke", "writes nothing", "another program's rules stay", "Cleanup leaves nothing",
		"survive a restart of the agent", "survive SIGKILL",
	}, "|") + ")"
}

// jobs are the packages named, or the matrix.
func jobs(packages []string, o options) []job {
	if o.command != "" {
		return []job{{dir: ".", command: o.command}}
	}
	if len(packages) == 0 {
		packages = matrix()
	}
	var all []job
	for _, p := range packages {
		// A test that hangs says where before the machine is ended.
		j := job{dir: filepath.Clean(p), args: []string{"-test.timeout=" + (o.limit * 9 / 10).String()}}
		run := o.run
		if run == "" && j.dir == conformance {
			run = chosenCases()
		}
		if run != "" {
			j.args = append(j.args, "-test.run="+run)
		}
		if o.verbose {
			j.args = append(j.args, "-test.v")
		}
		if o.backend != "" && j.dir == conformance {
			j.args = append(j.args, "-backend="+o.backend)
		}
		all = append(all, j)
	}
	return all
}

// buildTests builds the static test binaries of the jobs and gives their folder.
func buildTests(ctx context.Context, cache string, all []job) (string, error) {
	dir := filepath.Join(cache, "tests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the folder of test binaries: %w", err)
	}
	for _, j := range all {
		if j.command != "" {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, j.name()), "./"+j.dir)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("building the tests of %s: %w", j.dir, err)
		}
		if _, err := os.Stat(filepath.Join(dir, j.name())); err != nil {
			return "", fmt.Errorf("package %s has no tests: %w", j.dir, err)
		}
	}
	return dir, nil
}

// script is what the machine runs: the jobs in turn, whatever becomes of one.
// Each one's exit status goes to the harness on a line of its own.
func script(all []job) string {
	var b strings.Builder
	for _, j := range all {
		words := "sh -c " + quote(j.command)
		if j.command == "" {
			words = quote("/tests/" + j.name())
		}
		for _, a := range j.args {
			words += " " + quote(a)
		}
		fmt.Fprintf(&b, "cd %s && echo %s && %s\necho \"%s$? %s\"\n", quote("/src/"+j.dir), quote("== "+j.dir), words, statusMark, j.dir)
	}
	return b.String()
}

// quote makes one word of a shell's.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./=", r)
	}
	if s != "" && !slices.ContainsFunc([]rune(s), func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

package main

import (
	"cmp"
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

// part is a package's tests in the kernel matrix.
type part struct {
	dir     string
	backend string   // of the conformance table: all columns of it, or one column
	column  string   // just this column of it; "": as backend has it
	run     []string // names of tests, or words that names of cases hold; none: all
	on      []string // the series that it runs on when all are tested; none: on all
}

// matrix are the packages of the kernel matrix, in the order in which they
// run: those that say in the shortest time what a kernel lacks come first. When
// all kernels are tested, side by side, each column of the conformance table is on
// one or two of them, so that each change is tested in good time.
//
// All of it would take hours under emulation: the whole conformance table half
// an hour for each column, and Linux 6.1 a minute to verify the eBPF programs
// each time that they are loaded. So there are the cases that depend most on the
// kernel, and one column of each backend, or those of the backend that is asked
// for; the rest runs on this machine's own kernel. "PKG=… RUN=. LIMIT=2h" runs all.
func matrix(backend string) []part {
	policy := []string{
		"internal Cluster, external Local; pods told by ClusterCIDR", "without endpoints every frontend rejects",
		"an undefined port of a ClusterIP",
		"a client stays with its endpoint", "hairpin: an endpoint reaches itself", "survive SIGKILL of the agent and a new start",
	}
	ours := []string{"repairs what another program broke", "another program's rules stay"}
	parts := []part{
		{dir: "dataplane/ebpf/internal/terminate"},
		{dir: "dataplane/ebpf", run: []string{"TestSocketConnect", "TestHoldPodSockets", "TestModeNode",
			"TestConnectedUDPIsLeftToPackets", "TestBoundUDPSocketsAreLeftToPackets", "TestOlderSchemaIsTakenOver"}},
		{dir: "dataplane/nftables"},
		{dir: "dataplane/iptables", run: []string{"TestProbe", "TestReadBack", "TestVariantChoice", "TestLocalnet"}},
		{dir: "dataplane/ipvs"},
	}
	if backend != "" {
		return append(parts, part{dir: conformance, backend: backend, run: slices.Concat(policy, ours)})
	}
	return append(parts,
		// The agent itself, from manifests to packets: on this machine with the others.
		part{dir: "cmd/switchyard", backend: "ipvs", run: []string{"TestGetServicesCountsConnections", "TestCleanupDrains"},
			on: []string{"6.12"}},
		part{dir: conformance, backend: "ipvs", run: slices.Concat(policy, ours), on: []string{"6.12"}},
		part{dir: conformance, backend: "nftables", run: slices.Concat(policy, ours), on: []string{"6.1", newest}},
		part{dir: conformance, backend: "iptables-nft", run: policy[:3], on: []string{newest}},
		part{dir: conformance, backend: "ebpf", column: "ebpf", run: policy[:3], on: []string{"6.1"}},
	)
}

// pattern is a part's tests as go test -run has it.
func (p part) pattern() string {
	switch {
	case len(p.run) == 0:
		return ""
	case p.dir == conformance: // cases are below the columns
		column := ""
		if p.column != "" {
			column = "^" + p.column + "$"
		}
		return "/" + column + "/(" + strings.Join(p.run, "|") + ")"
	default:
		return "^(" + strings.Join(p.run, "|") + ")$"
	}
}

// named are the packages that are asked for, whole, but for the conformance
// table, which is so only where the cases are named, too.
func named(packages []string, o options) []part {
	var parts []part
	for _, p := range packages {
		p = filepath.Clean(p)
		switch {
		case p != conformance:
			parts = append(parts, part{dir: p})
		case o.run != "":
			parts = append(parts, part{dir: p, backend: o.backend})
		default:
			parts = append(parts, slices.DeleteFunc(matrix(o.backend), func(m part) bool { return m.dir != conformance })...)
		}
	}
	return parts
}

// jobs returns what runs on a series: the packages named, or the matrix.
func (o options) jobs(s series) []job {
	if o.command != "" {
		return []job{{dir: ".", command: o.command}}
	}
	parts := matrix(o.backend)
	switch {
	case len(o.tests) > 0:
		parts = named(o.tests, o)
	case o.kernel == "all":
		parts = slices.DeleteFunc(parts, func(p part) bool { return len(p.on) > 0 && !slices.Contains(p.on, s.name) })
	}
	var all []job
	for _, p := range parts {
		run := cmp.Or(o.run, p.pattern())
		// A test that hangs says where before the machine is ended.
		j := job{dir: p.dir, args: []string{"-test.timeout=" + (o.limit * 9 / 10).String()}}
		if run != "" {
			j.args = append(j.args, "-test.run="+run)
		}
		if o.verbose {
			j.args = append(j.args, "-test.v")
		}
		if p.backend != "" {
			j.args = append(j.args, "-backend="+p.backend)
		}
		j.args = append(j.args, strings.Fields(o.args)...)
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
	built := map[string]bool{}
	for _, j := range all {
		if j.command != "" || built[j.dir] {
			continue
		}
		built[j.dir] = true
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
			words = "sh /tests/twice " + quote("/tests/"+j.name())
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

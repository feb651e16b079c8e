// Package docs has tests of what the documents promise.
package docs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/switchyard-io/switchyard/"

// arrow is an import that design.md forbids. It is added to a folder, which may be
// of a room that is not there yet.
type arrow struct{ from, to string }

// forbidden are the arrows that point the wrong way. dataplane/null and
// dataplane/void stand for the backends to come. The linter cannot add them to a
// circle of imports, so null imports nothing.
func forbidden() []arrow {
	return []arrow{
		{"dataplane", "golang.org/x/sys/unix"},
		{"dataplane/ipvs", "dataplane/null"},
		{"dataplane/ebpf/internal/pods", "dataplane/null"},
		{"dataplane/takeover", "dataplane/null"},
		{"dataplane/hostfirewall", "dataplane/null"},
		{"dataplane/conntrack", "dataplane/null"},
		{"dataplane/internal/netns", "dataplane/null"},
		{"dataplane/internal/netns", "dataplane/lock"},
		{"dataplane/void", "dataplane/iptables"},
		{"dataplane/void", "dataplane/nftables"},
		{"dataplane/void", "dataplane/ipvs"},
		{"dataplane/void", "dataplane/ebpf"},
		{"dataplane/void", "dataplane/catalog"},
		{"dataplane/void", "k8s.io/api/core/v1"},
		{"dataplane/void", "watcher"},
		{"dataplane/void", "agent/status"},
		{"dataplane/void/internal/deep", "dataplane/null"},
		{"dataplane/iptables", "k8s.io/api/core/v1"},
		{"dataplane/iptables", "watcher/facts"},
		{"dataplane/catalog", "agent/status"},
		{"dataplane/catalog", "watcher"},
		{"dataplane/conformance", "watcher"},
		{"watcher", "dataplane/null"},
		{"watcher/addrs", "dataplane/null"},
		{"watcher/kube", "agent/status"},
		{"agent", "dataplane/null"},
		{"agent", "dataplane/nftables"},
		{"agent/config", "dataplane/ipvs"},
		{"agent/config", "dataplane/null"},
		{"agent/inspect", "dataplane/null"},
		{"agent/inspect/doctor", "dataplane/null"},
		{"agent/status", "dataplane/null"},
		{"agent/events", "dataplane/null"},
		{"internal/follow", "dataplane/null"},
		{"cmd/switchyard", "dataplane/null"},
		{"agent", "lab/kerneltest"},
		{"cmd/switchyard", "bench/result"},
		{"dataplane/void", "lab/kerneltest"},
		{"internal/follow", "lab/kerneltest"},
		{"watcher", "bench/result"},
		{"watcher/addrs", "lab/kerneltest"},
	}
}

// file returns the name of the file that has the import, the number i of all.
func (a arrow) file(i int) string { return path.Join(a.from, fmt.Sprintf("arrow%d.go", i)) }

// imported returns the import path.
func (a arrow) imported() string {
	if strings.Contains(strings.Split(a.to, "/")[0], ".") {
		return a.to
	}
	return module + a.to
}

// TestArrows adds each forbidden import to a copy of the tree and sees the linter
// refuse it. It refuses nothing in the tree as it is.
func TestArrows(t *testing.T) {
	if testing.Short() {
		t.Skip("it runs the linter twice")
	}
	root := t.TempDir()
	copyTree(t, "..", root)
	if refused := lint(t, root); len(refused) > 0 {
		t.Errorf("the linter refuses imports that are there: %q", refused)
	}
	// Toy backends, which others import.
	write(t, root, "dataplane/null/null.go", "// Package null is a backend to come.\npackage null\n")
	for i, a := range forbidden() {
		write(t, root, a.file(i), "package "+packageOf(t, root, a.from)+"\n\nimport _ \""+a.imported()+"\"\n")
	}
	refused := lint(t, root)
	for i, a := range forbidden() {
		if !slices.Contains(refused, a.file(i)) {
			t.Errorf("%s may import %s", a.from, a.to)
		}
	}
}

// copyTree copies what the linter reads.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	for _, top := range []string{"agent", "bench", "bpf", "cmd", "dataplane", "deploy", "docs", "internal", "lab", "tools", "watcher"} {
		if err := os.CopyFS(filepath.Join(to, top), os.DirFS(filepath.Join(from, top))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum", ".golangci.yaml"} {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, to, name, string(text))
	}
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// packageOf returns the name of the package in a folder.
func packageOf(t *testing.T, root, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "package "); ok {
				return strings.TrimSpace(name)
			}
		}
	}
	return path.Base(dir)
}

// lint runs the project's linter for imports alone and returns the files that it
// refuses.
func lint(t *testing.T, root string) []string {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=tools/go.mod", "golangci-lint", "run",
		"--allow-parallel-runners", "--enable-only=depguard", "--max-issues-per-linter=0", "--max-same-issues=0",
		"--output.json.path="+report, "./...")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text, failed := os.ReadFile(report)
	if failed != nil {
		t.Fatalf("the linter did not report: %v\n%s", err, out)
	}
	var found struct {
		Issues []struct {
			FromLinter, Text string
			Pos              struct{ Filename string }
		}
	}
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&found); err != nil {
		t.Fatalf("the linter's report: %v\n%s", err, out)
	}
	var refused []string
	for _, issue := range found.Issues {
		if issue.FromLinter != "depguard" {
			t.Errorf("%s: %s: %s", issue.Pos.Filename, issue.FromLinter, issue.Text)
			continue
		}
		refused = append(refused, issue.Pos.Filename)
	}
	return refused
}

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/bench/report"
	"github.com/switchyard-io/switchyard/bench/result"
)

// TestBenchmarks sees that benchmarks.md, its HTML, its plots and the README's
// figures are what the report writes from the committed result.
func TestBenchmarks(t *testing.T) {
	r, err := result.Read("benchmarks/result.json")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	write(t, root, "README.md", read(t, "../README.md"))
	docs := filepath.Join(root, "docs")
	write(t, docs, "benchmarks.md", "")
	if err := report.Write(r, report.Files{
		Page: filepath.Join(docs, "benchmarks.md"), Pictures: filepath.Join(docs, "benchmarks"),
		README: filepath.Join(root, "README.md"), Beside: "benchmarks",
	}); err != nil {
		t.Fatal(err)
	}
	files := []string{"README.md", "docs/benchmarks.md", "docs/benchmarks.html"}
	files = append(files, pictures(t, root)...)
	for _, f := range files {
		if read(t, root, f) != read(t, "..", f) {
			t.Errorf("%s is not what the report says; `make bench-docs` writes it", f)
		}
	}
	for _, f := range pictures(t, "..") {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Errorf("%s is of no report: %v", f, err)
		}
	}
}

// pictures returns the names of the plots below a root.
func pictures(t *testing.T, root string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "docs/benchmarks/*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if files[i], err = filepath.Rel(root, f); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestSwitching sees that what the benchmarks say of a change of backend is what
// takeover.md's table adds up to.
func TestSwitching(t *testing.T) {
	rows, failed, requests := 0, 0, 0
	for line := range strings.Lines(read(t, "takeover.md")) {
		counts := regexp.MustCompile(`(\d+) of (\d+)`).FindAllStringSubmatch(line, -1)
		if !strings.HasPrefix(line, "| ") || len(counts) == 0 {
			continue
		}
		rows++
		for _, c := range counts {
			failed += number(t, c[1])
			requests += number(t, c[2])
		}
	}
	section := read(t, "benchmarks/sections/10-switching.md")
	for _, want := range []string{strconv.Itoa(rows) + " changes", result.Thousands(requests) + " ", " " + strconv.Itoa(failed) + " were lost"} {
		if !strings.Contains(section, want) {
			t.Errorf("benchmarks/sections/10-switching.md lacks %q, which takeover.md's table says", want)
		}
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

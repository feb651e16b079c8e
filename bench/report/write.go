package report

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/switchyard-io/switchyard/bench/result"
)

// Files says where a report goes.
type Files struct {
	Page     string // the Markdown; the HTML lies beside it
	Pictures string // directory of the plots
	README   string // a file with a marked block for the shortest table; "": none
	Beside   string // directory with what people wrote of the run: notes.md and sections/*.md
}

// Write writes a report: as Markdown, as HTML, its plots as PNG and SVG, and a block
// of a README.
func Write(r *result.Report, f Files) error {
	p, err := pageOf(r, f)
	if err != nil {
		return err
	}
	dir := filepath.Dir(f.Page)
	if err := p.save(f.Pictures); err != nil {
		return err
	}
	var md, html bytes.Buffer
	if err := p.write(&md); err != nil {
		return err
	}
	if err := writeHTML(&html, md.Bytes(), dir); err != nil {
		return err
	}
	for file, text := range map[string][]byte{f.Page: md.Bytes(), strings.TrimSuffix(f.Page, ".md") + ".html": html.Bytes()} {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
	}
	if f.README == "" {
		return nil
	}
	return writeREADME(r, f)
}

// pageOf makes the page of a run, with what lies beside the run's result.
func pageOf(r *result.Report, f Files) (*page, error) {
	x, err := readExtras(f.Beside)
	if err != nil {
		return nil, err
	}
	if err := x.check(figures(r)); err != nil {
		return nil, err
	}
	from, err := filepath.Rel(filepath.Dir(f.Page), f.Pictures)
	if err != nil {
		return nil, fmt.Errorf("finding the plots from %s: %w", f.Page, err)
	}
	return newPage(r, x, filepath.ToSlash(from))
}

// save draws the pictures.
func (p *page) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the directory of plots: %w", err)
	}
	for _, picture := range p.pictures() {
		if err := picture.save(dir); err != nil {
			return err
		}
	}
	return nil
}

// The marks of the block that is written.
const (
	begin = "<!-- benchmarks: begin -->\n"
	end   = "<!-- benchmarks: end -->\n"
)

// writeREADME replaces the marked block of a README.
func writeREADME(r *result.Report, f Files) error {
	text, err := os.ReadFile(f.README)
	if err != nil {
		return fmt.Errorf("reading the README: %w", err)
	}
	link, err := filepath.Rel(filepath.Dir(f.README), f.Page)
	if err != nil {
		return fmt.Errorf("finding the report from %s: %w", f.README, err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no block between %q and %q", f.README, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	block := begin + README(r, filepath.ToSlash(link)) + end
	if err := os.WriteFile(f.README, []byte(before+block+after), 0o644); err != nil {
		return fmt.Errorf("writing the README: %w", err)
	}
	return nil
}

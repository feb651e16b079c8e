package report

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/template"

	"github.com/switchyard-io/switchyard/bench/result"
)

//go:embed page.md
var markdown string

// page is what a report says, before it is written as Markdown.
type page struct {
	*result.Report
	Pictures  string // directory of the pictures, as seen from the page
	Run       string
	Programs  []program
	Facts     []fact
	Figures   []line
	Notes     []note
	Questions []question
	Sections  []string
	Parts     []pagePart
}

// program is one whose version counts.
type program struct{ Name, Version string }

// line is a figure in the table of figures.
type line struct {
	figure
	Note string // the anchor of the note on it; "": there is none
}

// pagePart is a part with its pictures.
type pagePart struct {
	part
	Pictures []*picture
}

// NoDifference is the word for what may be noise.
func (page) NoDifference() string { return noDifference }

// newPage finds what a run says.
func newPage(r *result.Report, x extras, pictures string) (*page, error) {
	p := &page{Report: r, Pictures: pictures, Run: run(r), Facts: facts(r), Sections: x.sections}
	for _, name := range slices.Sorted(maps.Keys(r.Machine.Versions)) {
		p.Programs = append(p.Programs, program{name, r.Machine.Versions[name]})
	}
	for _, f := range figures(r) {
		l := line{figure: f}
		if n, ok := x.note(f.What); ok && f.Verdict() != reached {
			l.Note = n.ID
			if !slices.Contains(p.Notes, n) {
				p.Notes = append(p.Notes, n)
			}
		}
		p.Figures = append(p.Figures, l)
	}
	var err error
	if p.Questions, err = questions(r); err != nil {
		return nil, err
	}
	return p, p.addParts()
}

// addParts adds all that was measured.
func (p *page) addParts() error {
	for _, one := range parts(p.Report) {
		of := pagePart{part: one}
		if one.Name == result.Traffic {
			for _, plot := range []struct{ file, what string }{{"latency-clusterip", result.PodToClusterIP}, {"latency-nodeport", result.OutsideToNodePort}} {
				d, err := distribution(p.Report, plot.file, plot.what)
				if err != nil {
					return err
				}
				if d != nil {
					of.Pictures = append(of.Pictures, d)
				}
			}
		}
		p.Parts = append(p.Parts, of)
	}
	return nil
}

// pictures returns all pictures of the page.
func (p *page) pictures() []*picture {
	var all []*picture
	for _, q := range p.Questions {
		if q.Picture != nil {
			all = append(all, q.Picture)
		}
	}
	for _, one := range p.Parts {
		all = append(all, one.Pictures...)
	}
	return all
}

// write writes the page as Markdown.
func (p *page) write(w io.Writer) error {
	t, err := template.New("page.md").Funcs(template.FuncMap{"escape": escape, "capital": capital}).Parse(markdown)
	if err != nil {
		return fmt.Errorf("reading the form of the report: %w", err)
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

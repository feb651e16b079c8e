package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// extras are what people have written about a run: it lies beside the result.
type extras struct {
	notes    []note
	sections []string
}

// note says why a figure is not reached.
type note struct{ Title, ID, Text string }

// The names of what lies beside a result.
const (
	notesFile   = "notes.md"
	sectionsDir = "sections"
)

// readExtras reads notes.md, and the sections of the page, in the order of their
// files' names. A directory without them has none.
func readExtras(dir string) (extras, error) {
	var x extras
	text, err := os.ReadFile(filepath.Join(dir, notesFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return x, fmt.Errorf("reading notes on a run: %w", err)
	}
	if x.notes, err = parseNotes(string(text)); err != nil {
		return x, err
	}
	files, err := filepath.Glob(filepath.Join(dir, sectionsDir, "*.md"))
	if err != nil {
		return x, fmt.Errorf("finding the sections of a report: %w", err)
	}
	slices.Sort(files)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return x, fmt.Errorf("reading a section of a report: %w", err)
		}
		x.sections = append(x.sections, strings.TrimSpace(string(text))+"\n")
	}
	return x, nil
}

// parseNotes reads notes: each has the beginning of a figure as its heading. What
// comes before the first heading is for who writes them.
func parseNotes(text string) ([]note, error) {
	var all []note
	for i, part := range strings.Split("\n"+text, "\n## ") {
		if i == 0 {
			continue
		}
		title, body, _ := strings.Cut(part, "\n")
		n := note{strings.TrimSpace(title), fmt.Sprintf("note-%d", i), strings.TrimSpace(body)}
		if n.Text == "" {
			return nil, fmt.Errorf("%s: the note on %q is empty", notesFile, n.Title)
		}
		all = append(all, n)
	}
	return all, nil
}

// note finds the note on a figure.
func (x extras) note(figure string) (note, bool) {
	for _, n := range x.notes {
		if strings.HasPrefix(figure, n.Title) {
			return n, true
		}
	}
	return note{}, false
}

// check sees that each note is on a figure.
func (x extras) check(figures []figure) error {
	for _, n := range x.notes {
		if !slices.ContainsFunc(figures, func(f figure) bool { return strings.HasPrefix(f.What, n.Title) }) {
			return fmt.Errorf("%s: no figure begins with %q", notesFile, n.Title)
		}
	}
	return nil
}

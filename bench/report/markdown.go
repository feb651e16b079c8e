package report

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/switchyard-io/switchyard/bench/result"
)

//go:embed report.md
var markdown string

// Markdown writes the report; plots lie in the directory pictures, as seen from it.
func Markdown(w io.Writer, r *result.Report, plots []Plot, pictures string) error {
	t, err := template.New("report.md").Funcs(template.FuncMap{
		"sections": sections, "measured": measured, "goals": goals, "verdict": func(g goal) string { return g.verdict },
		"alternative": alternative,
		"row": func(row result.Key, part string) string {
			line := append([]string{row.Metric, unit(r, row)}, cells(r, row, measured(r, part))...)
			return "| " + strings.Join(line, " | ") + " |"
		},
		"header": func(part string) string {
			proxies := measured(r, part)
			return "| | | " + strings.Join(proxies, " | ") + " |\n|---|---|" + strings.Repeat("---:|", len(proxies))
		},
		"title":    func(s section) string { return s.title },
		"rows":     func(s section) []result.Key { return s.rows },
		"parts":    result.Parts,
		"what":     func(g goal) string { return g.what },
		"figure":   func(g goal) string { return g.figure },
		"reached":  func(g goal) string { return g.measured },
		"upper":    func(s string) string { return strings.ToUpper(s[:1]) + s[1:] },
		"versions": func() []string { return slices.Sorted(maps.Keys(r.Machine.Versions)) },
		"pictures": func() string { return pictures },
	}).Parse(markdown)
	if err != nil {
		return fmt.Errorf("reading the form of the report: %w", err)
	}
	if err := t.Execute(w, struct {
		*result.Report
		Plots []Plot
	}{r, plots}); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

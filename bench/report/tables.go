package report

import (
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// table is the rows of one case.
type table struct {
	Title string
	Notes []string // what its series are about
	Main  grid
	CPU   grid
}

// part is the tables of one part of a run.
type part struct {
	Name   string
	Tables []table
}

// parts returns all that was measured. Parts that this package knows come first.
func parts(r *result.Report) []part {
	names := result.Parts()
	for _, s := range r.Series {
		if !slices.Contains(names, s.Part) {
			names = append(names, s.Part)
		}
	}
	var all []part
	for _, n := range names {
		if t := tables(r, n); len(t) > 0 {
			all = append(all, part{n, t})
		}
	}
	return all
}

// tables returns the cases of a part, in the order measured.
func tables(r *result.Report, name string) []table {
	var titles []string
	rows := map[string][]result.Key{}
	for _, row := range r.Rows(name) {
		title := row.Case + size(row)
		if rows[title] == nil {
			titles = append(titles, title)
		}
		rows[title] = append(rows[title], row)
	}
	var all []table
	for _, title := range titles {
		cpu := func(row result.Key) bool { return strings.HasPrefix(row.Metric, result.CPU) }
		t := table{
			Title: capital(title), Notes: notesOf(r, rows[title]),
			Main: sideBySide(r, slices.DeleteFunc(slices.Clone(rows[title]), cpu), metric),
			CPU:  sideBySide(r, slices.DeleteFunc(slices.Clone(rows[title]), func(row result.Key) bool { return !cpu(row) }), metric),
		}
		all = append(all, t)
	}
	return all
}

// notesOf returns what is said of the series of some rows, each once.
func notesOf(r *result.Report, rows []result.Key) []string {
	var all []string
	for _, s := range r.Series {
		row := s.Key
		row.Proxy = ""
		if s.Note != "" && slices.Contains(rows, row) && !slices.Contains(all, s.Note) {
			all = append(all, s.Note)
		}
	}
	return all
}

// metric names a row of a table of one case.
func metric(row result.Key) string { return row.Metric }

// sideBySide puts the proxies that have any of the rows beside each other. The
// reference's figure stands alone; the others' differ from it. A column A/A follows
// the proxy that was measured twice.
func sideBySide(r *result.Report, rows []result.Key, name func(result.Key) string) grid {
	g := grid{words: 1, header: []string{""}}
	columns, twin := columnsOf(r, rows)
	for _, p := range columns {
		g.header = append(g.header, escape(p))
		if p == twin {
			g.header = append(g.header, "A/A")
		}
	}
	for _, row := range rows {
		title := name(row)
		if u := unit(r, row); u != "" {
			title += ", " + u
		}
		line := []string{escape(title)}
		reference := referenceOf(r, row, columns)
		for _, p := range columns {
			line = append(line, cell(r, row, p, reference))
			if p == twin {
				line = append(line, floorCell(r, row))
			}
		}
		g.rows = append(g.rows, line)
	}
	return g
}

// columnsOf returns the proxies that have any of the rows or were not ready for
// them, without those that were measured again, and whose second column there is.
func columnsOf(r *result.Report, rows []result.Key) (columns []string, twin string) {
	for _, p := range r.Proxies {
		has := slices.ContainsFunc(rows, func(row result.Key) bool { return r.Of(row, p) != nil || tooSlow(r, row, p) != nil })
		first, again := strings.CutSuffix(p, result.Again)
		switch {
		case has && again:
			twin = first
		case has:
			columns = append(columns, p)
		}
	}
	return columns, twin
}

// referenceOf returns the column that the others of a row are compared with: one
// rule where that is what a NodePort costs at least, and else the first. "": the
// columns were not measured side by side.
func referenceOf(r *result.Report, row result.Key, columns []string) string {
	if row.Part == result.ControlPlane {
		return ""
	}
	if strings.HasPrefix(row.Case, "outside to NodePort") && r.Of(row, proxy.OneRule) != nil {
		return proxy.OneRule
	}
	if slices.Contains(columns, proxy.Straight) && r.Of(row, proxy.Straight) != nil {
		return proxy.Straight
	}
	return ""
}

func cell(r *result.Report, row result.Key, p, reference string) string {
	s := r.Of(row, p)
	if s == nil {
		return missing(r, row, p)
	}
	if d := compared(r, row, s, r.Of(row, reference)); d != "" && p != reference {
		return stack(value(s.Median()), d)
	}
	return absolute(s)
}

// missing says why a proxy has no figure in a row, if it is because it was not ready.
func missing(r *result.Report, row result.Key, p string) string {
	if over := tooSlow(r, row, p); over != nil {
		return "not ready in " + quantity(over.Median(), over.Unit)
	}
	return unmeasured
}

// overdue says why a proxy has no figure in a row: it did not finish in its time, or
// was not ready for it. "" means that it has one, or was not asked.
func overdue(r *result.Report, row result.Key, p string) string {
	switch s := r.Of(row, p); {
	case s != nil && s.Over:
		return unfinished(s)
	case s == nil && tooSlow(r, row, p) != nil:
		return missing(r, row, p)
	}
	return ""
}

// tooSlow is the cold start that a proxy did not finish, with as many Services as
// a row or fewer; nil: it finished all.
func tooSlow(r *result.Report, row result.Key, p string) *result.Series {
	for _, s := range r.Series {
		if row.Part == result.ControlPlane && s.Part == row.Part && s.Case == result.ColdStart && s.Proxy == p && s.Over && s.Services <= row.Services {
			return s
		}
	}
	return nil
}

// floorCell says how much two equal columns differ in a row.
func floorCell(r *result.Report, row result.Key) string {
	if i, ok := r.Floor(row); ok {
		return share(i)
	}
	return unmeasured
}

func unit(r *result.Report, row result.Key) string {
	for _, p := range r.Proxies {
		if s := r.Of(row, p); s != nil {
			return s.Unit
		}
	}
	return ""
}

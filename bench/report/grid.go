package report

import "strings"

// grid is a table: the first columns are words, the others figures.
type grid struct {
	words  int
	header []string
	rows   [][]string
}

// Markdown writes the grid as a table of GitHub's Markdown, figures to the right; "" if
// it is empty.
func (g grid) Markdown() string {
	if g.empty() {
		return ""
	}
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(g.header)
	align := make([]string, len(g.header))
	for i := range align {
		align[i] = "---"
		if i >= g.words {
			align[i] += ":"
		}
	}
	b.WriteString("|" + strings.Join(align, "|") + "|\n")
	for _, row := range g.rows {
		line(row)
	}
	return b.String()
}

// empty tells whether there is nothing in it.
func (g grid) empty() bool { return len(g.rows) == 0 }

// escape keeps text from being taken for Markdown or HTML, in tables too.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", `\|`, "\n", " ").Replace(s)
}

// stack puts lines of a cell above each other.
func stack(lines ...string) string {
	var all []string
	for _, l := range lines {
		if l != "" {
			all = append(all, l)
		}
	}
	return strings.Join(all, "<br>")
}

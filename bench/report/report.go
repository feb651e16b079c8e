// Package report tells what a run measured: on a terminal, as Markdown and HTML, and as plots.
package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/switchyard-io/switchyard/bench/result"
)

// Table prints the answers to the main questions, and the figures to reach. All
// other figures are in the files.
func Table(w io.Writer, r *result.Report) error {
	_, _ = fmt.Fprintf(w, "\nFigures with their 95 %% intervals, and differences to the reference; %s: %s\n\n", same, noDifference)
	for _, f := range facts(r) {
		_, _ = fmt.Fprintln(w, f.Sentence)
	}
	all, err := questions(r)
	if err != nil {
		return err
	}
	for _, q := range all {
		_, _ = fmt.Fprintf(w, "\n%s\n\n", strings.ToUpper(q.Title))
		if err := q.Table.print(w); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(w, "\nTHE FIGURES TO REACH\n\n")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range figures(r) {
		_, _ = fmt.Fprintf(tw, "%s\t%s: %s\n", f.Verdict(), f.What, f.Asked)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range append(append([]string{}, r.Without...), r.Notes...) {
		_, _ = fmt.Fprintln(w, n)
	}
	return nil
}

// print writes a grid for a terminal; of a difference it writes the median.
func (g grid) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range append([][]string{g.header}, g.rows...) {
		for _, cell := range row {
			figure, difference, _ := strings.Cut(cell, "<br>")
			if difference == noDifference {
				difference = same
			}
			difference, _, _ = strings.Cut(difference, " [")
			_, _ = fmt.Fprint(tw, strings.TrimSpace(figure+" "+difference)+"\t")
		}
		_, _ = fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// same stands for no difference on a terminal.
const same = "="

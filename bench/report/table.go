// Package report tells what a run measured: on a terminal, as Markdown and as plots.
package report

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/switchyard-io/switchyard/bench/result"
)

// section is the rows of one case.
type section struct {
	title string
	rows  []result.Key
}

func sections(r *result.Report, part string) []section {
	var all []section
	for _, row := range r.Rows(part) {
		title := row.Case
		if row.Services > 0 {
			title += ", " + result.Thousands(row.Services) + " Services"
		}
		at := -1
		for i := range all {
			if all[i].title == title {
				at = i
			}
		}
		if at < 0 {
			all = append(all, section{title: title})
			at = len(all) - 1
		}
		all[at].rows = append(all[at].rows, row)
	}
	return all
}

// measured are the proxies that a part has anything of.
func measured(r *result.Report, part string) []string {
	var all []string
	for _, p := range r.Proxies {
		for _, s := range r.Series {
			if s.Part == part && s.Proxy == p {
				all = append(all, p)
				break
			}
		}
	}
	return all
}

// Table prints medians with their spread.
func Table(w io.Writer, r *result.Report) error {
	for _, part := range result.Parts() {
		proxies := measured(r, part)
		if len(proxies) == 0 {
			continue
		}
		_, _ = fmt.Fprintf(w, "\n%s: medians [95 %% interval], and differences to the first column\n", strings.ToUpper(part))
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, s := range sections(r, part) {
			_, _ = fmt.Fprintf(tw, "\n%s\t\t%s\t\n", s.title, strings.Join(proxies, "\t"))
			for _, row := range s.rows {
				_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t\n", row.Metric, unit(r, row), strings.Join(cells(r, row, proxies), "\t"))
			}
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, g := range goals(r) {
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", g.verdict, g.what, g.figure, g.measured)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range append(append([]string{}, r.Without...), r.Notes...) {
		_, _ = fmt.Fprintln(w, n)
	}
	return nil
}

func unit(r *result.Report, row result.Key) string {
	for _, p := range r.Proxies {
		if s := r.Of(row, p); s != nil {
			return s.Unit
		}
	}
	return ""
}

// cells tell a row: the first proxy's figure, and how the others differ from it
// where both were measured side by side.
func cells(r *result.Report, row result.Key, proxies []string) []string {
	var out []string
	for _, p := range proxies {
		out = append(out, beside(r, row, p, proxies[0]))
	}
	return out
}

// beside tells a figure, and how it differs from a reference.
func beside(r *result.Report, row result.Key, p, reference string) string {
	s, base := r.Of(row, p), r.Of(row, reference)
	if s == nil || base == nil || p == reference || s.Over || len(s.Samples) < few || len(base.Samples) < few {
		return cell(s)
	}
	i := s.Against(base)
	if !r.Seen(row, i) {
		return value(s.Median()) + ", no difference seen"
	}
	return fmt.Sprintf("%s, %+.1f%% [%+.1f %+.1f]", value(s.Median()), percent*i.Median, percent*i.Low, percent*i.High)
}

// few samples tell no difference.
const few = 6

func cell(s *result.Series) string {
	switch {
	case s == nil:
		return "–"
	case s.Over:
		return "over " + value(s.Median())
	case len(s.Samples) > 1:
		i := s.Interval()
		return fmt.Sprintf("%s [%s %s]", value(i.Median), value(i.Low), value(i.High))
	}
	return value(s.Median())
}

// value has three significant digits, and no fewer before the point than there are.
func value(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		return result.Thousands(int(math.Round(v)))
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

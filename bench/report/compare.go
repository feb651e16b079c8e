package report

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/switchyard-io/switchyard/bench/result"
)

// Changes prints what became of each series from one run to another. A difference
// that may be chance is told as none.
func Changes(w io.Writer, older, newer *result.Report) error {
	if older.Machine.Kernel != newer.Machine.Kernel || older.Machine.CPU != newer.Machine.CPU || older.Machine.CPUs != newer.Machine.CPUs {
		_, _ = fmt.Fprintf(w, "The machines differ: %s, Linux %s and %s, Linux %s. Just ratios within one run compare.\n",
			older.Machine.CPU, older.Machine.Kernel, newer.Machine.CPU, newer.Machine.Kernel)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	title := ""
	for _, c := range result.Compare(older, newer) {
		t := c.Part + ": " + c.Case
		if c.Services > 0 {
			t += ", " + result.Thousands(c.Services) + " Services"
		}
		if t != title {
			title = t
			_, _ = fmt.Fprintf(tw, "\n%s\t\told\tnew\tchange\t\n", t)
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t\n", c.Metric, c.Proxy, value(c.Old)+" "+c.Unit, value(c.New)+" "+c.Unit, delta(c))
	}
	return tw.Flush()
}

func delta(c result.Change) string {
	switch {
	case c.Over:
		return "did not end in its time"
	case c.Rounds < 4:
		return fmt.Sprintf("? (%d samples are too few to tell)", c.Rounds)
	case !c.Real:
		return fmt.Sprintf("~ (p=%.3f n=%d)", c.P, c.Rounds)
	}
	word := "worse"
	if c.Better() {
		word = "better"
	}
	return fmt.Sprintf("%+.1f%% %s (p=%.3f n=%d)", 100*(c.New/c.Old-1), word, c.P, c.Rounds)
}

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
	i := fmt.Sprintf("%+.1f%% [%+.1f %+.1f]", percent*c.Difference.Median, percent*c.Difference.Low, percent*c.Difference.High)
	switch {
	case c.Over:
		return "did not end in its time"
	case c.Rounds < fewest:
		return fmt.Sprintf("? (%d samples are too few to tell)", c.Rounds)
	case !c.Real:
		return "no difference seen " + i
	}
	word := "worse"
	if c.Better() {
		word = "better"
	}
	if c.Beside != "" {
		word += ", beside " + c.Beside
	}
	return i + " " + word
}

// fewest samples that tell of a difference.
const fewest = 4

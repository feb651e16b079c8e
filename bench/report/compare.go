package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/switchyard-io/switchyard/bench/result"
)

// Changes prints what became of each series from one run to another, and at the end
// how many changed. A difference that may be chance is printed as none.
func Changes(w io.Writer, older, newer *result.Report) error {
	if older.Machine.Kernel != newer.Machine.Kernel || older.Machine.CPU != newer.Machine.CPU || older.Machine.CPUs != newer.Machine.CPUs {
		_, _ = fmt.Fprintf(w, "The machines differ: %s, Linux %s and %s, Linux %s. Just ratios within one run compare.\n",
			older.Machine.CPU, older.Machine.Kernel, newer.Machine.CPU, newer.Machine.Kernel)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	title := ""
	counts := map[string]int{}
	for _, c := range byCase(result.Compare(older, newer), older.Proxies) {
		if t := c.Part + ": " + c.Case + size(c.Key); t != title {
			title = t
			_, _ = fmt.Fprintf(tw, "\n%s\t\told\tnew\tchange, 95 %% interval\t\n", t)
		}
		v := verdictOf(c)
		counts[v]++
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Metric, c.Proxy, quantity(c.Old, c.Unit), quantity(c.New, c.Unit), delta(c), v)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d better, %d worse, %d without a difference that is seen, %d with too few samples or without an end\n",
		counts[better], counts[worse], counts[noDifference], counts[fewSamples]+counts[unended])
	return err
}

// byCase puts the changes of a case together, and of those the ones of a metric, with
// the proxies in the order of the tables.
func byCase(all []result.Change, proxies []string) []result.Change {
	cases, metrics := map[string]int{}, map[result.Key]int{}
	row := func(k result.Key) result.Key {
		k.Proxy = ""
		return k
	}
	title := func(k result.Key) string { return k.Part + k.Case + size(k) }
	for i, c := range all {
		if _, ok := cases[title(c.Key)]; !ok {
			cases[title(c.Key)] = i
		}
		if _, ok := metrics[row(c.Key)]; !ok {
			metrics[row(c.Key)] = i
		}
	}
	slices.SortStableFunc(all, func(a, b result.Change) int {
		return cmp.Or(
			cmp.Compare(cases[title(a.Key)], cases[title(b.Key)]),
			cmp.Compare(metrics[row(a.Key)], metrics[row(b.Key)]),
			cmp.Compare(slices.Index(proxies, a.Proxy), slices.Index(proxies, b.Proxy)),
		)
	})
	return all
}

// The verdicts on a change.
const (
	better     = "better"
	worse      = "worse"
	fewSamples = "too few samples to tell"
	unended    = "did not finish"
)

// fewestAlone are the samples that tell of a difference without a reference.
const fewestAlone = 4

func verdictOf(c result.Change) string {
	switch {
	case c.Over:
		return unended
	case c.Rounds < fewestAlone:
		return fewSamples
	case !c.Real:
		return noDifference
	case c.Better():
		return better
	}
	return worse
}

// delta writes a change, and what it is relative to.
func delta(c result.Change) string {
	switch {
	case c.Over:
		return unmeasured
	case c.Rounds < fewestAlone:
		return fmt.Sprintf("%+.1f %%", percent*c.Difference.Median)
	case c.Beside != "":
		return share(c.Difference) + " beside " + c.Beside
	}
	return share(c.Difference)
}

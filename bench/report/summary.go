package report

import (
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// fact is one measured answer, in a sentence and as a row of a short table.
type fact struct {
	Sentence    string
	What        string
	Ours, Other string
}

// facts are the five things to know of a run; what it has not measured is not
// among them.
func facts(r *result.Report) []fact {
	var all []fact
	for _, of := range []func(*result.Report) fact{changeFact, requestFact, startFact, memoryFact, noiseFact} {
		if f := of(r); f.Sentence != "" {
			all = append(all, f)
		}
	}
	return all
}

// lead is the backend that short answers are about, and rival kube-proxy's newest
// mode; "": there is none.
func lead(r *result.Report) string  { return first(own(r)) }
func rival(r *result.Report) string { return first(theirs(r)) }

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// said writes a figure of a proxy in a sentence.
func said(r *result.Report, row result.Key, p string) string {
	s := r.Of(row, p)
	if s == nil {
		return missing(r, row, p)
	}
	if s.Over {
		return unfinished(s)
	}
	return quantity(s.Median(), s.Unit)
}

func changeFact(r *result.Report) fact {
	row, ok := changedRow(r, "p50")
	if !ok {
		return fact{}
	}
	tail := row
	tail.Metric = "p99"
	what := "one endpoint changes among " + result.Thousands(row.Services) + " Services"
	figures := func(p string) string {
		if r.Of(tail, p) == nil {
			return said(r, row, p)
		}
		return said(r, row, p) + " (p99 " + said(r, tail, p) + ")"
	}
	return about(r, what, "the first packet takes the new way after ", figures)
}

// about is a fact that compares the leading backend with kube-proxy.
func about(r *result.Report, what, words string, figures func(string) string) fact {
	f := fact{What: strings.TrimSuffix(what+": "+strings.TrimSuffix(words, " after "), ": "), Ours: figures(lead(r)), Other: unmeasured}
	f.Sentence = fmt.Sprintf("%s: %s%s with %s", capital(what), words, f.Ours, spoken(lead(r)))
	if p := rival(r); p != "" {
		f.Other = figures(p)
		f.Sentence += fmt.Sprintf("; %s: %s", spoken(p), f.Other)
	}
	f.Sentence += "."
	return f
}

func requestFact(r *result.Report) fact {
	row := result.Key{Part: result.Traffic, Case: result.PodToClusterIP, Metric: string(load.Requests)}
	if r.Of(row, lead(r)) == nil || r.Of(row, proxy.Straight) == nil {
		return fact{}
	}
	f := fact{What: "a TCP request through a ClusterIP, beside straight to the pod", Ours: cellWords(r, row, lead(r)), Other: unmeasured}
	if p := rival(r); p != "" {
		f.Other = cellWords(r, row, p)
	}
	f.Sentence = fmt.Sprintf("A TCP request from a pod through a ClusterIP takes %s with %s and %s straight to the pod: %s.", said(r, row, lead(r)), spoken(lead(r)), said(r, row, proxy.Straight), difference(r, row, lead(r), proxy.Straight))
	if p := rival(r); p != "" {
		f.Sentence += fmt.Sprintf(" With %s it takes %s; Switchyard against that: %s.", spoken(p), said(r, row, p), difference(r, row, lead(r), p))
	}
	return f
}

// cellWords is a figure and its difference to straight to the pod.
func cellWords(r *result.Report, row result.Key, p string) string {
	return said(r, row, p) + ", " + difference(r, row, p, proxy.Straight)
}

// difference says how a proxy differs from another.
func difference(r *result.Report, row result.Key, p, other string) string {
	if d := compared(r, row, r.Of(row, p), r.Of(row, other)); d != "" {
		return d
	}
	return "too few rounds to compare"
}

func startFact(r *result.Report) fact {
	row, ok := largest(r, result.Key{Part: result.ControlPlane, Case: result.ColdStart, Metric: result.Time})
	if !ok {
		return fact{}
	}
	row = usual(r, row)
	return about(r, "a cold start with "+result.Thousands(row.Services)+" Services of 10 endpoints", "all answer after ", func(p string) string { return said(r, row, p) })
}

func memoryFact(r *result.Report) fact {
	row, ok := largest(r, result.Key{Part: result.ControlPlane, Case: result.Memory, Metric: result.Resident})
	if !ok {
		return fact{}
	}
	row = usual(r, row)
	return about(r, "resident memory with "+result.Thousands(row.Services)+" Services of 10 endpoints", "", func(p string) string { return said(r, row, p) })
}

// usual takes the number of Services at which most was measured, if a row has it.
func usual(r *result.Report, row result.Key) result.Key {
	changed, ok := changedRow(r, "p50")
	if !ok {
		return row
	}
	at := row
	at.Services = changed.Services
	if r.Of(at, lead(r)) == nil {
		return row
	}
	return at
}

// noiseFact says how much equal columns differ, over all that is measured on the
// two most telling paths.
func noiseFact(r *result.Report) fact {
	most, n := 0.0, 0
	for _, what := range []string{result.PodToClusterIP, result.OutsideToNodePort} {
		for _, m := range kinds() {
			if i, ok := r.Floor(result.Key{Part: result.Traffic, Case: what, Metric: string(m)}); ok {
				most, n = max(most, i.High, -i.Low), n+1
			}
		}
	}
	if n == 0 {
		return fact{}
	}
	figure := fmt.Sprintf("%.1f %%", percent*most)
	return fact{
		Sentence: fmt.Sprintf("Two equal columns differ by at most %s, with 95 %% confidence in each of %d rows. A difference below that of its own row is printed as “%s”.", figure, n, noDifference),
		What:     "noise: two equal columns differ by at most", Ours: figure, Other: unmeasured,
	}
}

// README writes a short table of a run, for the project's front page.
func README(r *result.Report, link string) string {
	g := grid{words: 1, header: []string{"", "Switchyard", "kube-proxy"}}
	if lead(r) != "" {
		g.header[1] = spoken(lead(r))
	}
	if rival(r) != "" {
		g.header[2] = spoken(rival(r))
	}
	for _, f := range facts(r) {
		g.rows = append(g.rows, []string{escape(f.What), escape(f.Ours), escape(f.Other)})
	}
	return fmt.Sprintf("%s\n%s, %s, one machine: %d × %s, Linux %s. [All figures, and how they are measured](%s).\n", g.Markdown(), run(r), r.Started.UTC().Format("2 January 2006"),
		r.Machine.CPUs, escape(r.Machine.CPU), escape(r.Machine.Kernel), link)
}

// run says which of the runs a report is of.
func run(r *result.Report) string {
	if r.Quick {
		return "The quick run, whose figures are coarse"
	}
	return "The full run"
}

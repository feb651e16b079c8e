package costs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// tolerated is by how much a gated Cost may grow.
const tolerated = 0.10

// state is what became of a Cost.
type state uint8

const (
	same state = iota // within what is tolerated
	worse
	fresh // the baseline does not have it
	free  // ungated, or of another kernel than the baseline's
	gone  // this run does not have it
)

// row is a Cost beside its baseline.
type row struct {
	Cost  // now; of one that is gone, as it was
	Old   float64
	State state
}

// compare puts each Cost beside its baseline, in the order in which they were
// counted; those that are gone come last.
func compare(baseline, now *Set) []row {
	old := map[string]Cost{}
	for _, c := range baseline.Costs {
		old[c.name()] = c
	}
	var rows []row
	for _, c := range now.Costs {
		was, known := old[c.name()]
		delete(old, c.name())
		r := row{Cost: c, Old: was.Value}
		switch {
		case c.Ungated, c.ofKernel() && release(baseline.Linux) != release(now.Linux):
			r.State = free
		case !known || was.Unit != c.Unit:
			r.State = fresh
		case c.Value > was.Value*(1+tolerated):
			r.State = worse
		}
		rows = append(rows, r)
	}
	for _, c := range baseline.Costs {
		if _, left := old[c.name()]; left {
			rows = append(rows, row{Cost: c, Old: c.Value, State: gone})
		}
	}
	return rows
}

// bpfProgram begins the Of of a BPF program's costs.
const bpfProgram = "bpf "

// ofKernel tells whether a Cost is what a kernel makes of a BPF program: another one
// verifies and compiles it in another way.
func (c Cost) ofKernel() bool { return strings.HasPrefix(c.Of, bpfProgram) }

// release returns a kernel's version without what mends it: 6.12 of 6.12.57.
func release(version string) string {
	numbers := strings.Split(version, ".")
	return strings.Join(numbers[:min(2, len(numbers))], ".")
}

// Report prints the costs beside their baseline. It returns an error with one
// sentence for each regression. file is where the baseline is.
func Report(w io.Writer, baseline, now *Set, file string) error {
	rows := compare(baseline, now)
	if err := table(w, rows); err != nil {
		return err
	}
	for _, why := range now.Without {
		if _, err := fmt.Fprintln(w, "not counted: "+why); err != nil {
			return err
		}
	}
	if baseline.Linux != now.Linux || baseline.Go != now.Go {
		_, err := fmt.Fprintf(w, "The baseline was counted on Linux %s with %s, this run on Linux %s with %s.\n", baseline.Linux, baseline.Go, now.Linux, now.Go)
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, r := range rows {
		if r.State == worse {
			errs = append(errs, r.regression(file))
		}
	}
	return errors.Join(errs...)
}

// regression says what became worse, and how to accept it.
func (r row) regression(file string) error {
	return fmt.Errorf("%s rose from %s to %s %s (%s), and %.0f %% are tolerated; if it is worth that, write the baseline again: switchyard bench costs --write %s",
		r.name(), number(r.Old), number(r.Value), r.Unit, r.change(), 100*tolerated, file)
}

// change says how a Cost changed.
func (r row) change() string {
	switch {
	case r.State == free:
		return "not gated"
	case r.State == fresh:
		return "new"
	case r.State == gone:
		return "gone"
	case r.Value == r.Old:
		return "="
	case r.Old == 0:
		return "from 0"
	}
	return fmt.Sprintf("%+.1f %%", 100*(r.Value/r.Old-1))
}

// table prints rows under a heading.
func table(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "COST\tUNIT\tBASELINE\tNOW\tCHANGE") // Flush gives the error
	for _, r := range rows {
		old, now, note := number(r.Old), number(r.Value), ""
		switch r.State {
		case fresh, free:
			old = "-"
		case gone:
			now = "-"
		case worse:
			note = "  WORSE"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s%s\n", r.name(), r.Unit, old, now, r.change(), note)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the costs: %w", err)
	}
	return nil
}

// number prints a count without decimals, and a small ratio with two.
func number(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d", int64(v))
	}
	return fmt.Sprintf("%.2f", v)
}

// Read reads a baseline.
func Read(file string) (*Set, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the baseline: %w", err)
	}
	var s Set
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("reading the baseline: %s: %w", file, err)
	}
	return &s, nil
}

// Write writes a baseline. What is not gated is no measure for another run, and is
// left out.
func (s *Set) Write(file string) error {
	gated := *s
	gated.Costs = slices.DeleteFunc(slices.Clone(s.Costs), func(c Cost) bool { return c.Ungated })
	b, err := json.MarshalIndent(gated, "", " ")
	if err != nil {
		return fmt.Errorf("writing the baseline: %w", err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the baseline: %w", err)
	}
	return nil
}

// Package checks sends requests through a running lab and judges the answers.
//
// Each check is one line of the result: how many requests were sent, and how
// many failed. One failed request fails its check.
package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// ErrFailed says that a check failed; what failed has been printed.
var ErrFailed = errors.New("not every check passed")

// limit bounds one check.
const limit = 3 * time.Minute

// check is one line of the result.
type check struct {
	name string
	run  func(context.Context) ([]load.Report, error)
}

// result is what a check came to.
type result struct {
	name     string
	took     time.Duration
	requests int
	failed   int
	slowest  time.Duration
	problems []string // empty: it passed
}

// judge adds up a check's streams. It complains once about a stream that the
// check ran several times.
func judge(name string, took time.Duration, reports []load.Report, err error) result {
	r := result{name: name, took: took}
	var broken []load.Report
	for _, s := range reports {
		r.requests += s.Requests
		r.failed += s.Failed
		r.slowest = max(r.slowest, s.Slowest)
		if s.Failed == 0 {
			continue
		}
		same := func(b load.Report) bool { return b.Target.Name == s.Target.Name }
		if i := slices.IndexFunc(broken, same); i >= 0 {
			broken[i].Requests += s.Requests
			broken[i].Failed += s.Failed
			continue
		}
		broken = append(broken, s)
	}
	for _, s := range broken {
		r.problems = append(r.problems, fmt.Sprintf("%s: %d of %d requests failed, the first of %s: %s",
			s.Target.Name, s.Failed, s.Requests, s.FirstErrorAt.UTC().Format("15:04:05.000"), s.FirstError))
	}
	if err != nil {
		r.problems = append(r.problems, err.Error())
	}
	return r
}

func (r result) String() string {
	word := "PASS"
	if len(r.problems) > 0 {
		word = "FAIL"
	}
	line := fmt.Sprintf("%s  %-58s %6d requests %4d failed  slowest %5d ms %6.1f s",
		word, r.name, r.requests, r.failed, r.slowest.Milliseconds(), r.took.Seconds())
	for _, p := range r.problems {
		line += "\n      " + strings.ReplaceAll(p, "\n", "\n      ")
	}
	return line
}

// Run deploys the test servers, does every check whose name contains only, and
// prints a line for each to out. It removes what it deployed.
func Run(ctx context.Context, lab *cluster.Lab, only string, out io.Writer) error {
	s := &suite{lab: lab}
	began := time.Now()
	defer s.remove(ctx)
	if err := lab.Repair(ctx); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "  %5.1fs  test servers and clients deployed\n", time.Since(began).Seconds())
	var results []result
	for _, c := range s.checks() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !strings.Contains(c.name, only) {
			continue
		}
		r := one(ctx, c)
		_, _ = fmt.Fprintln(out, r)
		results = append(results, r)
	}
	return summarize(out, results, time.Since(began))
}

func one(ctx context.Context, c check) result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	reports, err := c.run(ctx)
	return judge(c.name, time.Since(began), reports, err)
}

// summarize prints all results as a table, the failures last where they are seen.
func summarize(out io.Writer, results []result, took time.Duration) error {
	sort.SliceStable(results, func(i, j int) bool {
		return len(results[i].problems) == 0 && len(results[j].problems) > 0
	})
	passed, failed, requests, lost := 0, 0, 0, 0
	_, _ = fmt.Fprintf(out, "\n%-6s%-58s %9s %7s %9s\n", "", "check", "requests", "failed", "seconds")
	for _, r := range results {
		word := "pass"
		if len(r.problems) > 0 {
			word = "FAIL"
			failed++
		} else {
			passed++
		}
		requests, lost = requests+r.requests, lost+r.failed
		_, _ = fmt.Fprintf(out, "%-6s%-58s %9d %7d %9.1f\n", word, r.name, r.requests, r.failed, r.took.Seconds())
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d failed; %d requests, %d failed; %.0f s\n", passed, failed, requests, lost, took.Seconds())
	if failed > 0 || passed == 0 {
		return ErrFailed
	}
	return nil
}

package checks

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

func TestJudge(t *testing.T) {
	good := load.Report{Requests: 10, Slowest: time.Second}
	bad := load.Report{Target: load.Target{Name: "ext to NodePort"}, Requests: 5, Failed: 2, FirstError: "refused",
		FirstErrorAt: time.Date(2026, 11, 1, 10, 20, 30, 400e6, time.UTC)}
	cases := map[string]struct {
		reports  []load.Report
		err      error
		requests int
		failed   int
		problems []string
	}{
		"all answered":        {reports: []load.Report{good, good}, requests: 20},
		"one stream failed":   {reports: []load.Report{good, bad}, requests: 15, failed: 2, problems: []string{"ext to NodePort: 2 of 5 requests failed, the first of 10:20:30.400: refused"}},
		"one stream, twice":   {reports: []load.Report{bad, bad}, requests: 10, failed: 4, problems: []string{"4 of 10 requests failed"}},
		"the deed failed":     {reports: []load.Report{good}, err: errors.New("no rollout"), requests: 10, problems: []string{"no rollout"}},
		"stream and deed":     {reports: []load.Report{bad}, err: errors.New("no rollout"), requests: 5, failed: 2, problems: []string{"ext to NodePort", "no rollout"}},
		"nothing to complain": {},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := judge("check", time.Second, c.reports, c.err)
			if r.requests != c.requests || r.failed != c.failed || len(r.problems) != len(c.problems) {
				t.Fatalf("got %+v", r)
			}
			for i, p := range c.problems {
				if !strings.Contains(r.problems[i], p) {
					t.Errorf("problem %q does not say %q", r.problems[i], p)
				}
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	pass, fail := result{name: "a"}, result{name: "b", failed: 1, problems: []string{"x"}}
	cases := map[string]struct {
		results []result
		says    string
		err     error
	}{
		"all passed":         {results: []result{pass, pass}, says: "2 passed, 0 failed"},
		"one failed":         {results: []result{fail, pass}, says: "1 passed, 1 failed", err: ErrFailed},
		"nothing was tested": {says: "0 passed, 0 failed", err: ErrFailed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := summarize(&out, c.results, time.Second); !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("%q does not say %q", out.String(), c.says)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	a := load.Report{Answers: map[string]int{"a": 3}}
	ab := load.Report{Answers: map[string]int{"a": 1, "b": 1}}
	cases := map[string]struct {
		err error
		ok  bool
	}{
		"exactly those":       {answered([]string{"b", "a"}, a, ab), true},
		"one did not answer":  {answered([]string{"a", "b"}, a), false},
		"one should not have": {answered([]string{"a"}, ab), false},
		"nobody, as wanted":   {answered(nil, load.Report{}), true},
		"over all streams":    {answered([]string{"a", "b"}, a, ab), true},
	}
	for name, c := range cases {
		if (c.err == nil) != c.ok {
			t.Errorf("%s: %v, want success: %v", name, c.err, c.ok)
		}
	}
}

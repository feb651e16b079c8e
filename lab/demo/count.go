package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// count is a table of who answered during each change.
type count struct {
	out      *screen
	loads    []*netlab.Load
	pods     []string
	failed   int // shown so far
	problems []error
}

func (c *count) widths() []int {
	w := []int{-18}
	for range c.pods {
		w = append(w, 5)
	}
	return append(w, 8)
}

func (c *count) header() {
	c.out.line("   Who answered, in the %.1f s that follow %.1f s after each change. Failures of all the time.",
		netlab.Patient(window).Seconds(), netlab.Patient(settle).Seconds())
	c.out.cells(c.widths(), append(append([]string{""}, c.pods...), "failed")...)
}

// step makes a change and shows who answers after it. What is not as it must
// be is told at the end.
func (c *count) step(ctx context.Context, title string, change func() error, idle, answer string) error {
	if err := change(); err != nil {
		return err
	}
	if err := sleep(ctx, netlab.Patient(settle)); err != nil {
		return err
	}
	before, err := c.sum()
	if err != nil {
		return err
	}
	if err := sleep(ctx, netlab.Patient(window)); err != nil {
		return err
	}
	after, err := c.sum()
	if err != nil {
		return err
	}
	row := []string{title}
	answers := map[string]int{}
	for _, p := range c.pods {
		answers[p] = after.ByServer[p] - before.ByServer[p]
		row = append(row, fmt.Sprint(answers[p]))
	}
	c.out.cells(c.widths(), append(row, fmt.Sprint(after.Failed-c.failed))...)
	c.failed = after.Failed
	for _, p := range strings.Fields(idle) {
		if answers[p] > 0 {
			c.problems = append(c.problems, fmt.Errorf("%s: pod %s still answered", title, p))
		}
	}
	for _, p := range strings.Fields(answer) {
		if answers[p] == 0 {
			c.problems = append(c.problems, fmt.Errorf("%s: pod %s never answered", title, p))
		}
	}
	return nil
}

// end stops the load and gives the result of all.
func (c *count) end() error {
	var tallies []netlab.Tally
	for _, l := range c.loads {
		t, err := l.Stop()
		if err != nil {
			return err
		}
		tallies = append(tallies, t)
	}
	total := add(tallies)
	c.out.line("   %s", c.out.verdict(total.Requests, total.Failed))
	if total.Failed > 0 {
		c.problems = append(c.problems, errors.New(total.String()))
	}
	return errors.Join(c.problems...)
}

func (c *count) sum() (netlab.Tally, error) {
	var tallies []netlab.Tally
	for _, l := range c.loads {
		t, err := l.Sum()
		if err != nil {
			return netlab.Tally{}, err
		}
		tallies = append(tallies, t)
	}
	return add(tallies), nil
}

// add makes one tally of several.
func add(tallies []netlab.Tally) netlab.Tally {
	total := netlab.Tally{ByServer: map[string]int{}}
	for _, t := range tallies {
		if t.Failed > 0 && (total.Failed == 0 || t.FirstAt < total.FirstAt) {
			total.First, total.FirstAt = t.First, t.FirstAt
		}
		total.Requests += t.Requests
		total.Failed += t.Failed
		for server, n := range t.ByServer {
			total.ByServer[server] += n
		}
	}
	return total
}

// sleep waits, or gives the reason why ctx ended first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

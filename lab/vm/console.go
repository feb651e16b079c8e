package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// What the machine tells the harness among what its tests write, each on a line.
const (
	statusMark = "vm: exit status " // of a package's tests: "vm: exit status 1 dataplane/iptables"
	endMark    = "vm: all tests ended"
)

// slowVariable tells tests how patient to be; see lab/netlab.
const slowVariable = "SWITCHYARD_TEST_SLOWNESS"

// result is what became of the tests in a machine.
type result struct {
	ended  bool // all of them
	passed []string
	failed []string
}

// String names the packages whose tests ended.
func (r result) String() string {
	var said []string
	if len(r.passed) > 0 {
		said = append(said, "passed "+strings.Join(r.passed, ", "))
	}
	if len(r.failed) > 0 {
		said = append(said, "failed "+strings.Join(r.failed, ", "))
	}
	if !r.ended {
		said = append(said, "not all tests ended")
	}
	return strings.Join(said, "; ")
}

func (r result) err() error {
	if len(r.failed) == 0 {
		return nil
	}
	return fmt.Errorf("the tests of %s failed", strings.Join(r.failed, ", "))
}

// line takes one line of the machine's; false: it was for the harness.
func (r *result) line(text string) bool {
	if text == endMark {
		r.ended = true
		return false
	}
	// A test may have left its last line without an end.
	_, rest, ok := strings.Cut(text, statusMark)
	if !ok {
		return true
	}
	number, name, _ := strings.Cut(rest, " ")
	if status, err := strconv.Atoi(number); err != nil || status != 0 {
		r.failed = append(r.failed, fmt.Sprintf("%s (exit status %s)", name, number))
	} else {
		r.passed = append(r.passed, name)
	}
	return false
}

// followTests copies what tests write until there is no more.
func followTests(from io.Reader, to io.Writer) (result, error) {
	var r result
	lines := bufio.NewReader(from)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			clean := strings.TrimRight(text, "\r\n")
			if r.line(clean) {
				if _, err := fmt.Fprintln(to, clean); err != nil {
					return r, fmt.Errorf("writing what the tests wrote: %w", err)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return r, fmt.Errorf("reading what the tests write: %w", err)
		}
	}
}

// kernelFaults finds in the kernel's console what must not be there, and what
// is worth a look.
func kernelFaults(console string) (bad, warnings []string) {
	fault := regexp.MustCompile(`Kernel panic|\bBUG:|\bOops\b|general protection fault|Unable to mount root|double fault`)
	warning := regexp.MustCompile(`\bWARNING:|\bINFO: (rcu|task)`)
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		switch {
		case fault.MatchString(line):
			bad = append(bad, line)
		case warning.MatchString(line):
			warnings = append(warnings, line)
		}
	}
	return bad, warnings
}

// sharedWriter lets two machines write whole lines to one place.
type sharedWriter struct {
	mu sync.Mutex
	to io.Writer
}

func (w *sharedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

// prefixWriter says before each line whose it is. Each Write is whole lines.
type prefixWriter struct {
	prefix string
	to     io.Writer
}

func (w *prefixWriter) Write(p []byte) (int, error) {
	var b strings.Builder
	for line := range strings.Lines(string(p)) {
		b.WriteString(w.prefix + line)
	}
	if _, err := io.WriteString(w.to, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

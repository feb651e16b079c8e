package conformance

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

var (
	backendFlag = flag.String("backend", "", "run only the columns of this backend (iptables) or this one column (iptables-nft)")
	keepFlag    = flag.Bool("keep", false, "after a case that fails, leave its lab as it is and wait for Ctrl-C")
)

// results is the table that the run ends with.
var results = &table{cells: map[string]map[string]string{}}

// ending is set when the run was interrupted: cases that fail for that wait
// until the labs are removed and the process ends.
var ending atomic.Bool

// labs are the labs that an interrupt must remove.
var labs openLabs

func TestMain(m *testing.M) {
	runAsFaultyCommand()
	netlab.Main(map[string]netlab.Role{agentRole: newAgentServices})
	flag.Parse()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		ending.Store(true)
		labs.closeAll()
		os.Exit(130)
	}()
	status := m.Run()
	results.print()
	os.Exit(status)
}

// TestConformance is the table: every case on every column.
func TestConformance(t *testing.T) {
	chosen := chosenColumns()
	if len(chosen) == 0 {
		t.Fatalf("there is no backend %q", *backendFlag)
	}
	for _, col := range chosen {
		results.addColumn(col.name)
	}
	for _, col := range chosen {
		t.Run(col.name, func(t *testing.T) {
			t.Parallel()
			runColumn(t, col)
		})
	}
}

func chosenColumns() []column {
	return slices.DeleteFunc(columns(), func(c column) bool {
		return *backendFlag != "" && *backendFlag != c.name && *backendFlag != c.backend
	})
}

// runColumn runs all cases on one backend.
func runColumn(t *testing.T, col column) {
	if err := supported(t.Context(), col); err != nil {
		if col.elsewhere != "" {
			err = fmt.Errorf("%w; it runs in %s", err, col.elsewhere)
		}
		for _, c := range allCases() {
			results.set(c, col.name, "unsupported: "+err.Error())
		}
		if kerneltest.Required() && (col.elsewhere == "" || *backendFlag != "") {
			t.Fatalf("REQUIRE_KERNEL is set: %v", err)
		}
		t.Skip(err)
	}
	s := newSuite(t, col)
	for _, c := range allCases() {
		t.Run(c.name, func(t *testing.T) { s.run(t, c) })
	}
}

// supported tells what this machine lacks for a column; nil: nothing.
func supported(ctx context.Context, col column) error {
	if err := netlab.RequireRoot(); err != nil {
		return err
	}
	err := col.driver(site{}).Works(ctx, agentConfig(nil, nil))
	if err != nil && !errors.Is(err, dataplane.ErrUnsupported) {
		return nil // a fault says nothing of the machine: let the cases tell
	}
	return err
}

// testCase is one row of the table: a rule of behaviour.
type testCase struct {
	rule string // where it is written: a section of KUBE-PROXY, or a clause of the contract
	name string // what must be so, as one sentence
	run  func(*run)
}

// allCases is the table, in reading order.
func allCases() []testCase {
	return slices.Concat(
		matrixCases(), verdictCases(), sourceRangeCases(), nodePortCases(),
		affinityCases(), balanceCases(), packetCases(), clauseCases(), driftCases(), crashCases(),
		neighbourTable(), wireCases(), addressCases(), socketCases(), acceleratorCases(),
	)
}

// table collects what became of each case on each column.
type table struct {
	mu      sync.Mutex
	columns []string
	cases   []testCase
	cells   map[string]map[string]string // case, column
	stalls  []string                     // what was forgiven; see mostStalls
}

func (t *table) stall(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stalls = append(t.stalls, text)
}

func (t *table) addColumn(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.columns, name) { // it is when -test.count runs it again
		t.columns = append(t.columns, name)
	}
}

func (t *table) set(c testCase, column, result string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cells[c.name] == nil {
		t.cells[c.name] = map[string]string{}
		t.cases = append(t.cases, c)
	}
	t.cells[c.name][column] = result
}

// print writes the table. Why a case is unsupported follows below it.
func (t *table) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.cases) == 0 {
		return
	}
	order := map[string]int{}
	for i, c := range allCases() {
		order[c.name] = i
	}
	slices.SortFunc(t.cases, func(a, b testCase) int { return order[a.name] - order[b.name] })
	wide, wideRule := 0, 0
	for _, c := range t.cases {
		wide, wideRule = max(wide, len([]rune(c.name))), max(wideRule, len([]rune(c.rule)))
	}
	var b, notes strings.Builder
	count, reasons := map[string]int{}, map[string]int{}
	fmt.Fprintf(&b, "\n%s  %s", pad("rule", wideRule), pad("case", wide))
	for _, col := range t.columns {
		fmt.Fprintf(&b, "  %s", pad(col, 15))
	}
	b.WriteString("\n")
	for _, c := range t.cases {
		fmt.Fprintf(&b, "%s  %s", pad(c.rule, wideRule), pad(c.name, wide))
		for _, col := range t.columns {
			word, reason, _ := strings.Cut(t.cells[c.name][col], ": ")
			if reason != "" && word == "unsupported" {
				reasons[col+" does not support: "+reason]++
			}
			if reason != "" && word == "not meant" {
				reasons[col+" is not meant to pass: "+reason]++
			}
			if word == "" {
				word = "not run"
			}
			count[word]++
			fmt.Fprintf(&b, "  %s", pad(word, 15))
		}
		b.WriteString("\n")
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(&notes, "%d cases that %s\n", reasons[reason], reason)
	}
	for _, s := range t.stalls {
		fmt.Fprintf(&notes, "a connection was made and got no answer, once: %s", s)
	}
	fmt.Printf("%s\n%s%d passed, %d failed, %d unsupported, %d not meant, %d not run\n", b.String(), notes.String(),
		count["pass"], count["FAIL"], count["unsupported"], count["not meant"], count["not run"])
}

// pad fills s with spaces up to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-len([]rune(s)), 0))
}

// openLabs are the labs in use.
type openLabs struct {
	mu   sync.Mutex
	labs []*netlab.Lab
}

func (o *openLabs) add(l *netlab.Lab) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.labs = append(o.labs, l)
}

func (o *openLabs) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.labs {
		_ = l.Close() // the next lab removes what this one cannot
	}
}

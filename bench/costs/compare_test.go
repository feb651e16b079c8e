package costs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestReport: what grew by more than a tenth is an error that names it; all else is
// in the table.
func TestReport(t *testing.T) {
	cost := func(value float64) *Cost {
		return &Cost{Of: "nftables", Services: 10_000, What: "rules", Unit: "rules", Value: value}
	}
	ungated := func(value float64) *Cost { c := cost(value); c.Ungated = true; return c }
	inBytes := func(value float64) *Cost { c := cost(value); c.Unit = "bytes"; return c }
	const name = "nftables, 10,000 Services: rules"
	for _, tc := range []struct {
		what     string
		old, now *Cost
		line     string // of the table
		fails    string
	}{
		{"the same", cost(20), cost(20), name + " rules 20 20 =", ""},
		{"better", cost(20), cost(10), name + " rules 20 10 -50.0 %", ""},
		{"as much worse as is tolerated", cost(20), cost(22), name + " rules 20 22 +10.0 %", ""},
		{"worse", cost(20), cost(23), name + " rules 20 23 +15.0 % WORSE",
			name + " rose from 20 to 23 rules (+15.0 %), and 10 % are tolerated; if it is worth that, write the baseline again: switchyard bench costs --write base.json"},
		{"one more of few", cost(3), cost(4), name + " rules 3 4 +33.3 % WORSE", "rose from 3 to 4 rules"},
		{"something where there was nothing", cost(0), cost(1), name + " rules 0 1 from 0 WORSE", "rose from 0 to 1 rules (from 0)"},
		{"nothing still", cost(0), cost(0), name + " rules 0 0 =", ""},
		{"not gated", nil, ungated(40.5), name + " rules - 40.50 not gated", ""},
		{"not gated any more", nil, cost(40), name + " rules - 40 new", ""},
		{"not gated since", cost(20), ungated(40), name + " rules - 40 not gated", ""},
		{"new", nil, cost(20), name + " rules - 20 new", ""},
		{"in another unit", inBytes(20), cost(40), name + " rules - 40 new", ""},
		{"gone", cost(20), nil, name + " rules 20 - gone", ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			set := func(c *Cost) *Set {
				if c == nil {
					return &Set{}
				}
				return &Set{Costs: []Cost{*c}}
			}
			var out bytes.Buffer
			err := Report(&out, set(tc.old), set(tc.now), "base.json")
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if got := strings.Join(strings.Fields(lines[len(lines)-1]), " "); len(lines) != 2 || got != tc.line {
				t.Errorf("the table is\n%s\nwant the line %q", out.String(), tc.line)
			}
			switch {
			case tc.fails == "" && err != nil:
				t.Errorf("it fails: %v", err)
			case tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)):
				t.Errorf("the error is %v, want %q", err, tc.fails)
			}
		})
	}
}

// TestOtherKernel: what a kernel makes of a program is compared with the same kernel's.
func TestOtherKernel(t *testing.T) {
	set := func(linux, of string, value float64) *Set {
		return &Set{Linux: linux, Costs: []Cost{{Of: of, What: "x", Unit: "bytes", Value: value}}}
	}
	for _, tc := range []struct {
		linux, of string
		fails     bool
	}{
		{"6.18.44", "bpf sock_connect4", true},
		{"6.18.50", "bpf sock_connect4", true},
		{"7.1.3", "bpf sock_connect4", false},
		{"7.1.3", "nftables", true},
	} {
		err := Report(io.Discard, set("6.18.44", tc.of, 10), set(tc.linux, tc.of, 20), "base.json")
		if (err != nil) != tc.fails {
			t.Errorf("%s on Linux %s: %v", tc.of, tc.linux, err)
		}
	}
}

// TestReportAll: each regression has a sentence of its own, and what could not be
// counted or was counted elsewhere is said.
func TestReportAll(t *testing.T) {
	old := &Set{Linux: "6.1", Go: "go1.26", Costs: []Cost{{Of: "a", What: "x", Unit: "bytes", Value: 1}, {Of: "b", What: "x", Unit: "bytes", Value: 1}}}
	now := &Set{Linux: "6.12", Go: "go1.26", Costs: []Cost{{Of: "a", What: "x", Unit: "bytes", Value: 2}, {Of: "b", What: "x", Unit: "bytes", Value: 2}}, Without: []string{"c: it does not work here"}}
	var out bytes.Buffer
	err := Report(&out, old, now, "base.json")
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.HasPrefix(err.Error(), "a: x rose") || !strings.Contains(err.Error(), "\nb: x rose") {
		t.Errorf("the error is %v", err)
	}
	for _, want := range []string{"not counted: c: it does not work here\n", "counted on Linux 6.1 with go1.26, this run on Linux 6.12"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}

// TestBaseline: what is gated is written, and read again.
func TestBaseline(t *testing.T) {
	file := filepath.Join(t.TempDir(), "base.json")
	want := &Set{Linux: "6.1", Go: "go1.26", Costs: []Cost{{Of: "a", Services: 10, What: "x", Unit: "bytes", Value: 1.5}}}
	all := *want
	all.Costs = append(slices.Clone(want.Costs), Cost{Of: "a", What: "y", Unit: "ns", Value: 2, Ungated: true})
	if err := all.Write(file); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("the error of a broken file is %v", err)
	}
}

// TestNames: each Cost of the committed baseline has a name of its own. One of two
// with the same name would be compared with nothing.
func TestNames(t *testing.T) {
	s, err := Read("baseline.json")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range s.Costs {
		if seen[c.name()] {
			t.Errorf("there are several costs %q", c.name())
		}
		seen[c.name()] = true
	}
	if len(seen) == 0 {
		t.Error("the baseline is empty")
	}
}

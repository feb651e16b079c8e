package show_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/agent/inspect/doctor"
	"github.com/switchyard-io/switchyard/agent/inspect/show"
)

func statusOf(t *testing.T, s inspect.Status) string {
	t.Helper()
	var out bytes.Buffer
	if err := (&show.Printer{Out: &out, Now: now}).Status(s); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestAges: no digit of an age is lost, whatever it is.
func TestAges(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		want string
	}{
		{-time.Second, "0s ago"}, // clocks differ
		{0, "0s ago"},
		{10 * time.Second, "10s ago"},
		{70 * time.Second, "70s ago"},
		{5*time.Minute + 20*time.Second, "5m20s ago"},
		{13*time.Minute + 20*time.Second, "13m ago"},
		{20 * time.Minute, "20m ago"},
		{3*time.Hour + 20*time.Minute, "3h20m ago"},
		{10 * time.Hour, "10h ago"},
		{50 * time.Hour, "2d2h ago"},
		{100 * 24 * time.Hour, "100d ago"},
	} {
		if got := statusOf(t, inspect.Status{Started: now.Add(-c.age)}); !strings.Contains(got, "started "+c.want+"\n") {
			t.Errorf("after %v: %s; want %q", c.age, got, c.want)
		}
	}
}

// TestContactWithTheAPIServer: one line where all is well, and one for each
// resource that is not heard of.
func TestContactWithTheAPIServer(t *testing.T) {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name     string
		contacts []inspect.Contact
		want     []string
	}{
		{"from manifests", nil, nil},
		{"all is well", []inspect.Contact{{Resource: "Services", Last: ago(3 * time.Second)}, {Resource: "EndpointSlices", Last: ago(50 * time.Second)}},
			[]string{"API server   last contact 50s ago"}},
		{"one is not heard of", []inspect.Contact{{Resource: "Services", Last: ago(45 * time.Second), Error: "connection refused"}, {Resource: "EndpointSlices", Last: ago(time.Second)}},
			[]string{"API server   Services last answered 45s ago: connection refused"}},
		{"never heard of", []inspect.Contact{{Resource: "Services", Error: "no route to host"}, {Resource: "Nodes"}},
			[]string{"API server   Services never answered: no route to host", "             Nodes never answered"}},
	} {
		got := statusOf(t, inspect.Status{Source: c.contacts})
		for _, line := range c.want {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("%s: no line %q in\n%s", c.name, line, got)
			}
		}
		if len(c.want) == 0 && strings.Contains(got, "API server") {
			t.Errorf("%s: it speaks of an API server:\n%s", c.name, got)
		}
	}
}

// TestDoctorsVerdict: the last line counts the backends that do not work, and
// the one that was asked for decides.
func TestDoctorsVerdict(t *testing.T) {
	bad, good := doctor.Backend{Name: "ebpf", Reason: "finding cgroup /nowhere"}, doctor.Backend{Name: "iptables", Works: true}
	problem := []doctor.Check{{Group: "kernel", Name: "version", State: doctor.Problem}}
	for _, c := range []struct {
		report doctor.Report
		works  bool
		want   string
	}{
		{doctor.Report{Backends: []doctor.Backend{good}}, true, "No problems."},
		{doctor.Report{Backends: []doctor.Backend{bad, good}}, true, "No problems, but not every backend works here: ebpf."},
		{doctor.Report{Backends: []doctor.Backend{bad, good}, Checks: problem}, true, "1 problem."},
		{doctor.Report{Backends: []doctor.Backend{bad, good}, Asked: "iptables"}, true, "No problems, but not every backend works here: ebpf."},
		{doctor.Report{Backends: []doctor.Backend{bad, good}, Asked: "ebpf"}, false, "Backend ebpf does not work here."},
		{doctor.Report{Backends: []doctor.Backend{bad}}, false, "No backend works here."},
	} {
		var out bytes.Buffer
		if err := (&show.Printer{Out: &out}).Doctor(c.report); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if got := lines[len(lines)-1]; got != c.want || c.report.Works() != c.works {
			t.Errorf("%+v: %q, works %v; want %q, %v", c.report, got, c.report.Works(), c.want, c.works)
		}
	}
}

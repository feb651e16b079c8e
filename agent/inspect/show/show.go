// Package show prints the answers of package inspect as tables for people.
package show

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/switchyard-io/switchyard/agent/inspect"
)

// Printer prints. The first error of its writer ends all.
type Printer struct {
	Out    io.Writer
	Colour bool
	Now    time.Time // that ages are told from

	err error
}

// The colours of a terminal.
const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (p *Printer) paint(colour, text string) string {
	if !p.Colour {
		return text
	}
	return colour + text + plain
}

func (p *Printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.Out, format+"\n", args...)
	}
}

// table prints rows in columns, the first as the heading; indent goes before
// each line. Colour comes after the columns are made, as it has no width.
func (p *Printer) table(indent string, rows [][]string) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush() // into memory
	first := true
	for line := range strings.Lines(b.String()) {
		line = strings.TrimRight(line, " \n")
		if first {
			line = p.paint(bold, line)
		}
		first = false
		p.line("%s%s", indent, line)
	}
}

// facts prints names and what they are; a name of "" goes on with the one before.
func (p *Printer) facts(rows [][2]string) {
	wide := 0
	for _, r := range rows {
		wide = max(wide, len(r[0]))
	}
	for _, r := range rows {
		p.line("%s%s%s", p.paint(bold, r[0]), strings.Repeat(" ", wide-len(r[0])+3), r[1])
	}
}

// Status prints how all stands.
func (p *Printer) Status(s inspect.Status) error {
	rows := [][2]string{{"Node", join(", ", s.Node.Name, prefixed("zone ", s.Node.Zone), strings.Join(s.Node.Families, " and "))}}
	if s.Node.Lacking != "" {
		rows = append(rows, [2]string{"", p.paint(red, "no other address family is programmed: "+s.Node.Lacking)})
	}
	rows = append(rows, [][2]string{
		{"Agent", fmt.Sprintf("%s, started %s", s.Version, p.ago(s.Started))},
		{"Backend", fmt.Sprintf("%s (--backend=%s)", s.Backend.Name, s.Backend.Asked)},
	}...)
	for _, o := range s.Backend.PassedOver {
		rows = append(rows, [2]string{"", fmt.Sprintf("passed over %s: %s", o.Name, o.Reason)})
	}
	if s.Sockets != nil {
		for i, line := range s.Sockets.Lines() {
			rows = append(rows, [2]string{map[bool]string{true: "Sockets"}[i == 0], line})
		}
	}
	rows = append(rows, [2]string{"Health", p.health(s.Health)})
	rows = append(rows, p.source(s.Source)...)
	rows = append(rows, [2]string{"Kernel", p.sync(s.Sync)})
	if s.Sync.Error != "" {
		rows = append(rows, [2]string{"", p.paint(red, "the last Sync: "+s.Sync.Error)})
	}
	rows = append(rows,
		[2]string{"Wanted", fmt.Sprintf("%s, %s, %s, %s in use",
			plural(s.Counts.Services, "Service"), plural(s.Counts.ServicePorts, "Service port"),
			plural(s.Counts.Frontends, "frontend"), plural(s.Counts.Endpoints, "endpoint"))},
		[2]string{"NodePorts", "on " + orNone(strings.Join(s.Node.NodePorts, ", "))},
		[2]string{"Pods", s.Node.LocalPods},
		[2]string{"Drift", p.drift(s.Drift)})
	if last := s.Drift.LastFound; last != nil {
		what := "not repaired"
		if last.Repaired {
			what = "repaired"
		}
		rows = append(rows, [2]string{"", fmt.Sprintf("found %s and %s:", p.ago(last.At), what)})
		for _, d := range firsts(last.Differences) {
			rows = append(rows, [2]string{"", "  " + d})
		}
	}
	rows = append(rows, p.list("Refused", s.Refused)...)
	rows = append(rows, p.list("Conflicts", s.Conflicts)...)
	rows = append(rows, p.list("Leftovers", leftovers(s.Leftovers))...)
	rows = append(rows, p.firewall(s.Firewall)...)
	p.facts(rows)
	return p.err
}

// source says how the API server answers: in one line where it does.
func (p *Printer) source(contacts []inspect.Contact) [][2]string {
	if len(contacts) == 0 {
		return nil
	}
	var bad []string
	oldest := contacts[0].Last
	for _, c := range contacts {
		if c.Last.Before(oldest) {
			oldest = c.Last
		}
		since := "never answered"
		if !c.Last.IsZero() {
			since = "last answered " + p.ago(c.Last)
		}
		if c.Error != "" || c.Last.IsZero() {
			bad = append(bad, join(": ", c.Resource+" "+since, c.Error))
		}
	}
	if len(bad) > 0 {
		return p.list("API server", bad)
	}
	return [][2]string{{"API server", "last contact " + p.ago(oldest)}}
}

// firewall says what of the host's firewall is kept open, or cannot be.
func (p *Printer) firewall(f *inspect.Firewall) [][2]string {
	if f == nil {
		return nil
	}
	var rows [][2]string
	for _, rule := range f.KeptOpen {
		rows = append(rows, [2]string{"Firewall", "kept open for Services: " + rule})
	}
	if f.Error != "" {
		rows = append(rows, p.list("Firewall", []string{"cannot be opened for Services: " + f.Error})...)
	}
	return rows
}

// leftovers says what is left of each.
func leftovers(found map[string][]string) []string {
	var lines []string
	for _, whose := range slices.Sorted(maps.Keys(found)) {
		lines = append(lines, "of "+whose+", which nobody updates: "+strings.Join(found[whose], ", "))
	}
	return lines
}

// list are facts of one name, which are all bad.
func (p *Printer) list(name string, lines []string) [][2]string {
	var rows [][2]string
	for _, l := range lines {
		rows = append(rows, [2]string{name, p.paint(red, l)})
		name = ""
	}
	return rows
}

// firsts are the first of many lines, and how many more there are.
func firsts(lines []string) []string {
	const most = 5
	if len(lines) <= most {
		return lines
	}
	return append(append([]string{}, lines[:most]...), fmt.Sprintf("and %d more", len(lines)-most))
}

func (p *Printer) health(h inspect.Health) string {
	said := p.paint(red, "unhealthy")
	switch {
	case h.Healthy && h.Ready:
		said = p.paint(green, "healthy and ready")
	case h.Healthy:
		said = p.paint(red, "not ready")
	}
	if !h.NodeEligible {
		said += ", load balancers are told to pass this node by"
	}
	return join(": ", said, h.Reason)
}

func (p *Printer) sync(s inspect.Sync) string {
	if s.Wanted == 0 {
		return "nothing is wanted yet"
	}
	said := fmt.Sprintf("revision %d is in force", s.InForce)
	switch {
	case s.InForce == 0:
		said = fmt.Sprintf("nothing is wholly in force; revision %d is wanted", s.Wanted)
	case s.InForce != s.Wanted:
		said += fmt.Sprintf("; %d is wanted", s.Wanted)
	}
	if !s.BehindSince.IsZero() {
		said = p.paint(red, said+", behind for "+age(p.Now.Sub(s.BehindSince)))
	}
	if !s.LastSync.IsZero() {
		said += ", last Sync " + p.ago(s.LastSync)
	}
	return said
}

func (p *Printer) drift(d inspect.Drift) string {
	every := time.Duration(d.EverySeconds * float64(time.Second))
	if d.Checks == 0 {
		return fmt.Sprintf("the kernel is compared every %s, and was not yet", age(every))
	}
	return fmt.Sprintf("the kernel is compared every %s, last %s: %s, %s of %s", age(every), p.ago(d.LastCheck),
		plural(int(d.Checks), "comparison"), plural(int(d.Repairs), "repair"), plural(int(d.Found), "difference"))
}

// Verification prints what was found.
func (p *Printer) Verification(v inspect.Verification) error {
	took := time.Duration(v.TookSeconds * float64(time.Second)).Round(time.Millisecond)
	if len(v.Differences) == 0 {
		p.line("%s (revision %d, read back in %s)", p.paint(green, "The kernel is as wanted"), v.Revision, took)
		return p.err
	}
	differs := "The kernel differs from what is wanted in " + plural(len(v.Differences), "place")
	p.line("%s (revision %d, read back in %s):", p.paint(red, differs), v.Revision, took)
	for _, d := range v.Differences {
		p.line("  %s", d)
	}
	switch {
	case v.Repaired && len(v.Left) == 0:
		p.line("%s", p.paint(green, "Repaired."))
	case v.Repaired:
		p.line("%s", p.paint(red, "The repair left "+plural(len(v.Left), "difference")+":"))
		for _, d := range v.Left {
			p.line("  %s", d)
		}
	default:
		p.line("`switchyard verify --repair` repairs it now; the agent does so on its own, too (--verify-interval).")
	}
	return p.err
}

func (p *Printer) ago(t time.Time) string { return age(p.Now.Sub(t)) + " ago" }

// age prints a duration as kubectl prints ages.
func age(d time.Duration) string { return duration.HumanDuration(max(d, 0)) }

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// join joins the words that are not empty.
func join(by string, words ...string) string {
	var some []string
	for _, w := range words {
		if w != "" {
			some = append(some, w)
		}
	}
	return strings.Join(some, by)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

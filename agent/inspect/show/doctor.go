package show

import (
	"strings"

	"github.com/switchyard-io/switchyard/agent/inspect/doctor"
)

// Doctor prints what a machine can do.
func (p *Printer) Doctor(r doctor.Report) error {
	p.line("%s", p.paint(bold, "Backends"))
	for _, b := range r.Backends {
		said := p.paint(green, "works")
		switch {
		case !b.Works:
			said = p.paint(red, "does not work: ") + b.Reason
		case b.Auto:
			said += ", and is what --backend=auto takes"
		}
		if b.Works && b.Reason != "" {
			said += "; not for all address families: " + b.Reason
		}
		p.line("  %-10s %s", b.Name, said)
	}
	group := ""
	wide := 0
	for _, c := range r.Checks {
		wide = max(wide, len(c.Name))
	}
	for _, c := range r.Checks {
		if c.Group != group {
			group = c.Group
			p.line("")
			p.line("%s", p.paint(bold, strings.ToUpper(group[:1])+group[1:]))
		}
		p.check(c, wide)
	}
	p.line("")
	switch n := r.Problems(); {
	case !r.Works() && r.Asked != "" && len(r.Lacking()) < len(r.Backends):
		p.line("%s", p.paint(red, "Backend "+r.Asked+" does not work here."))
	case !r.Works():
		p.line("%s", p.paint(red, "No backend works here."))
	case n > 0:
		p.line("%s", p.paint(red, plural(n, "problem")+"."))
	case len(r.Lacking()) > 0:
		p.line("No problems, but not every backend works here: %s.", strings.Join(r.Lacking(), ", "))
	default:
		p.line("%s", p.paint(green, "No problems."))
	}
	return p.err
}

func (p *Printer) check(c doctor.Check, wide int) {
	state := string(c.State)
	pad := strings.Repeat(" ", len(doctor.Problem)-len(state))
	switch c.State {
	case doctor.OK:
		state = p.paint(green, state)
	case doctor.Problem:
		state = p.paint(red, state)
	}
	name := c.Name + strings.Repeat(" ", wide-len(c.Name))
	p.line("  %s%s  %s  %s", state, pad, name, join("  ", c.Found, matters(c)))
	if c.Advice != "" {
		p.line("  %s  → %s", strings.Repeat(" ", len(doctor.Problem)+2+wide), c.Advice)
	}
}

// matters names the backends that a check matters to, where it is not well.
func matters(c doctor.Check) string {
	if c.State == doctor.OK || len(c.For) == 0 {
		return ""
	}
	return "(for " + strings.Join(c.For, ", ") + ")"
}

// Package doctor tells what this kernel and system can do for each backend, and what to do about each lack.
//
// It changes nothing and needs no agent.
package doctor

import (
	"context"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Report is what was found.
type Report struct {
	Kernel   string    `json:"kernel"`
	Asked    string    `json:"asked,omitempty"` // the backend that --backend names; "": any will do
	Backends []Backend `json:"backends"`
	Checks   []Check   `json:"checks"`
}

// Backend is whether a backend works here.
type Backend struct {
	Name   string `json:"name"`
	Works  bool   `json:"works"`
	Reason string `json:"reason,omitempty"` // why not, or not for all address families
	Auto   bool   `json:"auto"`             // --backend=auto takes it
}

// State is how a check came out.
type State string

// The states.
const (
	OK      State = "ok"
	Note    State = "note"    // worth knowing
	Problem State = "problem" // something will not work, or not as it should
)

// Check is one thing that was looked at.
type Check struct {
	Group  string   `json:"group"`
	Name   string   `json:"name"`
	State  State    `json:"state"`
	Found  string   `json:"found"`
	For    []string `json:"for,omitempty"`    // the backends that it matters to; none: all
	Advice string   `json:"advice,omitempty"` // what to do
}

// The groups of checks, in the order of the report.
const (
	groupPrivileges = "privileges"
	groupKernel     = "kernel"
	groupTools      = "tools"
	groupSettings   = "settings"
	groupNeighbours = "neighbours"
)

// Examine looks at everything.
func Examine(ctx context.Context, s System, drivers []dataplane.Driver, cfg dataplane.Config) Report {
	r := Report{Kernel: s.kernel()}
	for _, d := range drivers {
		r.Backends = append(r.Backends, probe(ctx, d, cfg))
	}
	// As catalog.Choose: one that works for some families only if none does for all.
	auto := slices.IndexFunc(r.Backends, func(b Backend) bool { return b.Works && b.Reason == "" })
	if auto < 0 {
		auto = slices.IndexFunc(r.Backends, func(b Backend) bool { return b.Works })
	}
	if auto >= 0 {
		r.Backends[auto].Auto = true
	}
	r.Checks = s.checks(ctx, drivers)
	return r
}

// probe tries a backend for all address families, and then for those that it can do.
func probe(ctx context.Context, d dataplane.Driver, cfg dataplane.Config) Backend {
	b := Backend{Name: d.Name}
	err := d.Works(ctx, cfg)
	if err == nil {
		b.Works = true
		return b
	}
	b.Reason = reason(err)
	cfg.SomeFamilies = true
	b.Works = len(cfg.Families) > 1 && d.Works(ctx, cfg) == nil
	return b
}

// Works reports whether the backend that was asked for works, or any where any will do.
func (r Report) Works() bool {
	return slices.ContainsFunc(r.Backends, func(b Backend) bool {
		return b.Works && (r.Asked == "" || r.Asked == b.Name)
	})
}

// Lacking returns the names of the backends that do not work.
func (r Report) Lacking() []string {
	var names []string
	for _, b := range r.Backends {
		if !b.Works {
			names = append(names, b.Name)
		}
	}
	return names
}

// Problems counts the checks that found one.
func (r Report) Problems() int {
	n := 0
	for _, c := range r.Checks {
		if c.State == Problem {
			n++
		}
	}
	return n
}

// reason is an error in one line, without the words that mark it as no fault.
func reason(err error) string {
	mark := dataplane.ErrUnsupported.Error()
	line := strings.ReplaceAll(strings.ReplaceAll(err.Error(), mark+": ", ""), ": "+mark, "")
	return strings.ReplaceAll(line, "\n", "; ")
}

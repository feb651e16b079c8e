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
	for _, look := range []func(context.Context) []Check{
		s.privileges, s.kernelFeatures, s.tools, s.settings, s.neighbours,
	} {
		r.Checks = append(r.Checks, look(ctx)...)
	}
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

// names of the backends that checks are for.
const (
	forEBPF     = "ebpf"
	forNFTables = "nftables"
	forIPVS     = "ipvs"
	forIPTables = "iptables"
)

// settings are the sysctls that matter.
func (s System) settings(context.Context) []Check {
	var out []Check
	for _, w := range []struct {
		name   string
		state  State // where it is not as wanted
		wanted func(value string) bool
		isFor  []string
		advice string
	}{
		{"net/ipv4/ip_forward", Problem, is("1"), nil, "traffic to pods and from outside is not forwarded: sysctl -w net.ipv4.ip_forward=1 (and in /etc/sysctl.d)"},
		{"net/ipv6/conf/all/forwarding", Note, is("1"), nil, "IPv6 traffic is not forwarded; where the cluster has IPv6: sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"net/bridge/bridge-nf-call-iptables", Problem, is("1"), []string{forNFTables, forIPTables, forIPVS},
			"a pod does not get through a Service to another pod on the same Linux bridge: sysctl -w net.bridge.bridge-nf-call-iptables=1"},
		{"net/bridge/bridge-nf-call-ip6tables", Note, is("1"), []string{forNFTables, forIPTables, forIPVS},
			"the same for IPv6: sysctl -w net.bridge.bridge-nf-call-ip6tables=1"},
		{"net/ipv4/conf/all/rp_filter", Note, not("1"), nil, "strict: answers that come back through another device than they would be sent to are dropped; 2 (loose) is safe with several devices"},
		{"net/ipv4/conf/all/route_localnet", OK, is("0", "1"), []string{forNFTables, forIPTables, forIPVS}, ""},
		{"net/netfilter/nf_conntrack_tcp_be_liberal", OK, is("0", "1"), []string{forNFTables, forIPTables, forIPVS}, ""},
		{"net/netfilter/nf_conntrack_acct", Note, is("1"), []string{forNFTables, forIPTables, forIPVS},
			"`switchyard get services` shows no bytes: sysctl -w net.netfilter.nf_conntrack_acct=1"},
	} {
		c := Check{Group: groupSettings, Name: strings.ReplaceAll(w.name, "/", "."), State: OK, For: w.isFor}
		value, err := s.read("/proc/sys/" + w.name)
		switch {
		case err != nil:
			continue // this kernel has it not, or not yet: there is nothing to set
		case !w.wanted(value):
			c.State, c.Advice = w.state, w.advice
		}
		c.Found = value
		out = append(out, c)
	}
	return out
}

func is(values ...string) func(string) bool {
	return func(v string) bool {
		for _, w := range values {
			if v == w {
				return true
			}
		}
		return false
	}
}

func not(value string) func(string) bool { return func(v string) bool { return v != value } }

// tools are the programs that backends call, and those that help to look.
func (s System) tools(ctx context.Context) []Check {
	var out []Check
	working := false
	for _, name := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		c := Check{Group: groupTools, Name: name, For: []string{forIPTables}, State: OK}
		version, err := s.Run(ctx, name, "--version")
		if err != nil {
			c.State, c.Found = Note, "not there"
			if name == "iptables-nft" {
				c.Advice = "install the package iptables (Debian, Fedora: iptables or iptables-nft), where the iptables backend is wanted"
			}
		} else {
			c.Found = strings.TrimSpace(version)
			working = true
		}
		out = append(out, c)
	}
	if !working {
		out[0].State = Problem
	}
	return out
}

// reason is an error in one line, without the words that mark it as no fault.
func reason(err error) string {
	mark := dataplane.ErrUnsupported.Error()
	line := strings.ReplaceAll(strings.ReplaceAll(err.Error(), mark+": ", ""), ": "+mark, "")
	return strings.ReplaceAll(line, "\n", "; ")
}

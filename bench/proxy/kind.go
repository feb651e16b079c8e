// Package proxy is what is compared: Switchyard's backends, kube-proxy's modes and no proxy at all, each in a lab of its own.
package proxy

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/bench/result"
)

// Kind is one thing that is compared.
type Kind struct {
	Name    string   // with its flags, each after a "+"
	Program string   // "": none, straight to the pod
	Mode    string   // its --backend or --proxy-mode
	Flags   []string // more of its own
	Binary  string   // "": the one that all have
	counter counter
}

// The programs.
const (
	Switchyard = "switchyard"
	KubeProxy  = "kube-proxy"
)

// The references, which have no program.
const (
	Straight  = "straight"         // no proxy at all, and a kernel that tracks no connection
	Conntrack = "straight-tracked" // no proxy, on a node that tracks connections, as with most CNIs
	OneRule   = "one-rule"         // one DNAT rule, written by hand
)

// Kinds are all that can be compared, in the order of the reports.
func Kinds() []Kind {
	return []Kind{
		{Name: Straight, counter: natted},
		{Name: Conntrack, counter: natted},
		{Name: OneRule, counter: natted},
		{Name: "switchyard-ebpf", Program: Switchyard, Mode: "ebpf", counter: forwardedByEBPF},
		{Name: "switchyard-nftables", Program: Switchyard, Mode: "nftables", counter: natted},
		{Name: "switchyard-ipvs", Program: Switchyard, Mode: "ipvs", counter: natted},
		{Name: "switchyard-iptables", Program: Switchyard, Mode: "iptables", counter: natted},
		{Name: "kube-proxy-ipvs", Program: KubeProxy, Mode: "ipvs", counter: natted},
		{Name: "kube-proxy-iptables", Program: KubeProxy, Mode: "iptables", counter: natted},
		{Name: "kube-proxy-nftables", Program: KubeProxy, Mode: "nftables", counter: natted},
	}
}

// Again is the kind once more.
func (k Kind) Again() Kind {
	k.Name += result.Again
	return k
}

// With is the kind with one more flag.
func (k Kind) With(flag string) Kind {
	k.Name += "+" + flag
	k.Flags = append(slices.Clone(k.Flags), "--"+flag)
	return k
}

// base is the name without what tells a second column of the same.
func (k Kind) base() string { return strings.TrimSuffix(k.Name, result.Again) }

// Choose gives the kinds of these names; none: all that work on this machine,
// and why the others do not.
func Choose(names []string) (kinds []Kind, without []string, err error) {
	if len(names) > 0 {
		for _, n := range names {
			k, err := parse(n)
			if err != nil {
				return nil, nil, err
			}
			kinds = append(kinds, k)
		}
		return kinds, nil, nil
	}
	for _, k := range Kinds() {
		if why := k.missing(); why != "" {
			without = append(without, k.Name+": "+why)
			continue
		}
		kinds = append(kinds, k)
	}
	return kinds, without, nil
}

// parse reads a name, which flags may follow, each after a "+", and another binary
// of Switchyard after a "@".
func parse(name string) (Kind, error) {
	rest, binary, other := strings.Cut(name, "@")
	words := strings.Split(rest, "+")
	var known []string
	for _, k := range Kinds() {
		known = append(known, k.Name)
		if k.Name != words[0] || k.Program == "" && name != words[0] || other && k.Program != Switchyard {
			continue
		}
		for _, w := range words[1:] {
			k = k.With(w)
		}
		k.Name, k.Binary = name, binary
		return k, nil
	}
	return Kind{}, fmt.Errorf("--proxies: there is no %q; there are %s", name, strings.Join(known, ", "))
}

// missing is what a kind lacks on this machine; "": nothing.
func (k Kind) missing() string {
	if k.Mode != "ipvs" {
		return ""
	}
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		return "this kernel has no ip_vs"
	}
	return ""
}

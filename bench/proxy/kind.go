// Package proxy is what is compared: Switchyard's backends, kube-proxy's modes and no proxy at all, each in a lab of its own.
package proxy

import (
	"fmt"
	"os"
	"strings"
)

// Kind is one thing that is compared.
type Kind struct {
	Name    string   // with its flags, each after a "+"
	Program string   // "": none, straight to the pod
	Mode    string   // its --backend or --proxy-mode
	Flags   []string // more of its own
	counter counter
}

// The programs.
const (
	Switchyard = "switchyard"
	KubeProxy  = "kube-proxy"
)

// Straight is the limit that all others are compared to.
const Straight = "straight"

// Kinds are all that can be compared, in the order of the reports.
func Kinds() []Kind {
	return []Kind{
		{Name: Straight, counter: natted},
		{Name: "switchyard-ebpf", Program: Switchyard, Mode: "ebpf", counter: forwardedByEBPF},
		{Name: "switchyard-nftables", Program: Switchyard, Mode: "nftables", counter: natted},
		{Name: "switchyard-ipvs", Program: Switchyard, Mode: "ipvs", counter: natted},
		{Name: "switchyard-iptables", Program: Switchyard, Mode: "iptables", counter: natted},
		{Name: "kube-proxy-ipvs", Program: KubeProxy, Mode: "ipvs", counter: natted},
		{Name: "kube-proxy-iptables", Program: KubeProxy, Mode: "iptables", counter: natted},
		{Name: "kube-proxy-nftables", Program: KubeProxy, Mode: "nftables", counter: natted},
	}
}

// Choose gives the kinds of these names; none: all that work on this machine,
// and why the others do not.
func Choose(names []string) (kinds []Kind, without []string, err error) {
	all := map[string]Kind{}
	var known []string
	for _, k := range Kinds() {
		all[k.Name] = k
		known = append(known, k.Name)
		if len(names) > 0 {
			continue
		}
		if why := k.missing(); why != "" {
			without = append(without, k.Name+": "+why)
			continue
		}
		kinds = append(kinds, k)
	}
	for _, n := range names {
		words := strings.Split(n, "+")
		k, ok := all[words[0]]
		k.Name = n
		for _, w := range words[1:] {
			k.Flags = append(k.Flags, "--"+w)
		}
		if !ok || len(k.Flags) > 0 && k.Program == "" {
			return nil, nil, fmt.Errorf("--proxies: there is no %q; there are %s", n, strings.Join(known, ", "))
		}
		kinds = append(kinds, k)
	}
	return kinds, without, nil
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

package main

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// moduleFolders are the folders whose modules the machine gets, below
// kernel/. The kernel loads what is asked for by modprobe, as on a real node.
func moduleFolders() []string {
	return []string{
		"net/netfilter/", "net/ipv4/", "net/ipv6/", "net/bridge/", "net/8021q/", "net/sched/", "net/sctp/", "net/xfrm/",
		"drivers/net/veth.ko", "drivers/net/dummy.ko", "drivers/net/ifb.ko", "drivers/net/macvlan.ko",
		"drivers/net/geneve.ko", "drivers/net/vxlan/", "drivers/net/netkit.ko", "drivers/net/tun.ko",
		"crypto/crc32c", "crypto/hmac", "crypto/sha", // what the kernel finds by what it does, not by name
	}
}

// modulesOf chooses modules out of modules.dep, whose lines are "FILE: FILE …":
// all below the folders, with all that they depend on, each after what it needs.
func modulesOf(dep string, folders []string) ([]string, error) {
	needs := map[string][]string{}
	var wanted []string
	for line := range strings.Lines(dep) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs[file] = strings.Fields(rest)
		if slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(file, path.Join("kernel", f)) }) {
			wanted = append(wanted, file)
		}
	}
	var order []string
	state := map[string]int{} // 1: on the way, 2: done
	var visit func(string) error
	visit = func(file string) error {
		if state[file] == 2 {
			return nil
		}
		if state[file] == 1 {
			return fmt.Errorf("modules.dep: %s depends on itself", file)
		}
		state[file] = 1
		if _, ok := needs[file]; !ok {
			return fmt.Errorf("modules.dep: %s is needed and has no line", file)
		}
		for _, n := range needs[file] {
			if err := visit(n); err != nil {
				return err
			}
		}
		state[file] = 2
		order = append(order, file)
		return nil
	}
	for _, file := range wanted {
		if err := visit(file); err != nil {
			return nil, err
		}
	}
	return order, nil
}

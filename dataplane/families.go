package dataplane

import (
	"os"
	"strings"
)

// HostFamilies are the address families that this host has (KUBE-PROXY §0):
// IPv4 always, IPv6 where the kernel has it and it is not switched off.
func HostFamilies() []Family {
	families := []Family{IPv4}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return families
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	if err == nil && strings.TrimSpace(string(off)) == "1" {
		return families
	}
	return append(families, IPv6)
}

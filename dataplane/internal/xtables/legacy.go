// Package xtables says what iptables has in the kernel without making any of it.
package xtables

import (
	"os"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// LegacyTables returns the tables that legacy iptables has in this network
// namespace. To ask its program for one that is not there would load its module.
func LegacyTables(f dataplane.Family) []string {
	path := "/proc/net/ip_tables_names"
	if f == dataplane.IPv6 {
		path = "/proc/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // no legacy iptables in this kernel
	}
	return strings.Fields(string(b))
}

package dataplane

import (
	"errors"
	"fmt"
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

// Usable returns the families for which a mechanism works: all that are asked for,
// or with SomeFamilies at least one. It logs which are missing.
func (c Config) Usable(works func(Family) error) ([]Family, error) {
	var have []Family
	var errs []error
	for _, f := range c.Families {
		if err := works(f); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		have = append(have, f)
	}
	if len(errs) == 0 {
		return have, nil
	}
	err := errors.Join(errs...)
	if !c.SomeFamilies || len(have) == 0 {
		return nil, err
	}
	c.Log.Warn("an address family cannot be programmed here; serving the other one alone", "families", fmt.Sprintf("%v", have), "error", err)
	return have, nil
}

package programs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// NeededCapabilities returns the capabilities that loading and attaching the programs takes.
func NeededCapabilities() map[string]int {
	return map[string]int{"CAP_BPF": unix.CAP_BPF, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_PERFMON": unix.CAP_PERFMON}
}

// checkCapabilities names those that this process lacks. The kernel would say
// so too, but without CAP_PERFMON only after half a minute: it goes through the
// programs twice, with far more care, and once more for its log.
func checkCapabilities() error {
	var have [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("asking for this process's capabilities: %w", err)
	}
	has := func(c int) bool { return have[c/32].Effective&(1<<(c%32)) != 0 }
	all := NeededCapabilities()
	var lacks []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		// CAP_SYS_ADMIN stands for the two that were split off it in Linux 5.8.
		if c := all[name]; !has(c) && (c == unix.CAP_NET_ADMIN || !has(unix.CAP_SYS_ADMIN)) {
			lacks = append(lacks, name)
		}
	}
	if len(lacks) > 0 {
		return fmt.Errorf("eBPF needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; this process lacks %s: %w", strings.Join(lacks, " and "), dataplane.ErrUnsupported)
	}
	return nil
}

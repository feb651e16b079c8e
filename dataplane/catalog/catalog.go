// Package catalog is the backends, listed in plain sight in order of preference.
package catalog

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/dataplane/ipvs"
)

// Options are what only one backend has.
type Options struct {
	EBPF     ebpf.Options
	IPTables iptables.Options
	IPVS     ipvs.Options
}

// Drivers are the backends of this binary, the most preferred first. IPVS is
// last: whoever wants its schedulers asks for it, and for all others iptables
// does the same with fewer parts.
func Drivers(o Options) []dataplane.Driver {
	return []dataplane.Driver{
		ebpf.Driver(o.EBPF),
		iptables.Driver(o.IPTables),
		ipvs.Driver(o.IPVS),
	}
}

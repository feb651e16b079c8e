// Package catalog is the backends, listed in plain sight in order of preference.
package catalog

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
)

// Options are what only one backend has.
type Options struct {
	EBPF     ebpf.Options
	IPTables iptables.Options
}

// Drivers are the backends of this binary, the most preferred first.
func Drivers(o Options) []dataplane.Driver {
	return []dataplane.Driver{
		ebpf.Driver(o.EBPF),
		iptables.Driver(o.IPTables),
	}
}

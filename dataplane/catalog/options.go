package catalog

import (
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/dataplane/ipvs"
)

// Names of what single backends are told, for those who read settings: they import no
// backend.
type (
	EBPFOptions     = ebpf.Options
	IPTablesOptions = iptables.Options
	IPVSOptions     = ipvs.Options
	// SocketLB says whose sockets are translated; see SocketLBs.
	SocketLB = ebpf.SocketLB
)

// SocketLBOff is the mode in which nobody's sockets are translated.
const SocketLBOff = ebpf.Off

// MaxMapSize is the most elements that a size among the EBPFOptions can be.
const MaxMapSize = ebpf.MaxSize

// SocketLBs returns the modes of SocketLB.
func SocketLBs() []string { return ebpf.SocketLBs() }

// DefaultOptions returns what backends do if they are told nothing.
func DefaultOptions() Options {
	return Options{
		EBPF: ebpf.DefaultOptions(),
		IPVS: ipvs.Options{Scheduler: ipvs.DefaultScheduler, DrainTimeout: ipvs.DefaultDrainTimeout},
	}
}

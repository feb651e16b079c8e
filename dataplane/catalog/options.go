package catalog

import (
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/dataplane/ipvs"
)

// The names of what single backends are told are for those who read settings, so that
// they import no backend.
type (
	// EBPFOptions are the sockets'.
	EBPFOptions = ebpf.Options
	// IPTablesOptions are those of backend iptables.
	IPTablesOptions = iptables.Options
	// IPVSOptions are those of backend ipvs.
	IPVSOptions = ipvs.Options
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

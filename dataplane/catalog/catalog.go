// Package catalog is the backends, listed in plain sight in order of preference.
package catalog

import (
	"context"
	"log/slog"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/hostfirewall"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/dataplane/ipvs"
	"github.com/switchyard-io/switchyard/dataplane/nftables"
)

// Options are what only one backend has.
type Options struct {
	// EBPF is what the accelerator of sockets is told. If SocketLB is set, it
	// counts for every backend; if it is empty, for ebpf alone, with its default.
	EBPF     ebpf.Options
	IPTables iptables.Options
	IPVS     ipvs.Options
	// Unfit holds the layers whose first Sync failed on this machine, by name,
	// and why. Choose passes over every backend that needs one of them.
	Unfit map[string]error
}

// nameEBPF is the backend that is the first packet backend which works here,
// with sockets on top.
const nameEBPF = "ebpf"

// Drivers are the backends of this binary, the most preferred first. IPVS is
// last: whoever wants its schedulers asks for it, and for all others iptables
// does the same with fewer parts.
func Drivers(o Options) []dataplane.Driver {
	accelerated := ebpf.Accelerate(nameEBPF, o.EBPF, o.Fit(bases(o))...)
	socketsUnfit := o.Unfit[ebpf.LayerName]
	if socketsUnfit != nil {
		accelerated = unfit(accelerated, socketsUnfit)
	}
	drivers := []dataplane.Driver{accelerated}
	for _, d := range o.Fit(packetBackends(o)) {
		if o.EBPF.SocketLB == "" || o.EBPF.SocketLB == ebpf.Off || socketsUnfit != nil {
			drivers = append(drivers, ebpf.WithoutSockets(o.EBPF, d))
			continue
		}
		drivers = append(drivers, ebpf.Accelerate(d.Name, o.EBPF, d))
	}
	return drivers
}

// Layers are all that this binary may put into a kernel, each to be cleaned up
// by itself: a backend may consist of several.
func Layers(o Options) []dataplane.Driver {
	return append([]dataplane.Driver{ebpf.Layer(o.EBPF), hostfirewall.Layer()}, packetBackends(o)...)
}

// bases are the packet backends under ebpf, the most preferred first.
func bases(o Options) []dataplane.Driver {
	return []dataplane.Driver{
		nftables.Driver(),
		iptables.Driver(o.IPTables),
	}
}

// packetBackends are the backends that serve everything by themselves.
func packetBackends(o Options) []dataplane.Driver { return append(bases(o), ipvs.Driver(o.IPVS)) }

// FindChains returns how many chains of any program iptables has that owns picks,
// in a line for each variant and family, whichever backend runs.
func FindChains(ctx context.Context, owns func(chain string) bool) ([]string, error) {
	return iptables.Find(ctx, owns)
}

// RemoveChains removes the chains of iptables that owns picks, and the rules that
// lead to them, whichever backend runs.
func RemoveChains(ctx context.Context, log *slog.Logger, owns func(chain string) bool) error {
	return iptables.RemoveChains(ctx, log, owns)
}

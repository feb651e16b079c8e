package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// isRefusal reports whether an error is about what was written, not about the
// machine or the moment.
func isRefusal(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.EEXIST, unix.EBUSY, unix.ENOSPC, unix.ERANGE, unix.EMSGSIZE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// findRefused finds the ServicePorts of want that are not in prev and that the
// kernel does not take, so that the others need not wait for them. It reports
// whether it found one.
func (b *backend) findRefused(prev, want *dataplane.Snapshot) bool {
	var before dataplane.Ports
	if prev != nil {
		before = prev.Ports
	}
	for port := range b.refused {
		if want.Ports.Get(port.ID) != port {
			delete(b.refused, port)
		}
	}
	known := len(b.refused)
	for _, f := range b.cfg.Families {
		var ports []*dataplane.ServicePort
		for _, port := range dataplane.Diff(before, want.Ports) {
			if port != nil && port.ID.Family == f {
				ports = append(ports, port)
			}
		}
		b.refuseAmong(f, ports)
	}
	return len(b.refused) > known
}

// refuseAmong finds the ServicePorts that the kernel does not take by trying
// halves of them.
func (b *backend) refuseAmong(f dataplane.Family, ports []*dataplane.ServicePort) {
	if len(ports) == 0 {
		return
	}
	err := try(&node{family: f}, ports...)
	switch {
	case err == nil:
	case !isRefusal(err):
		b.log.Warn("cannot find out which Service the kernel does not take", "family", f, "error", err)
	case len(ports) == 1:
		b.refused[ports[0]] = fmt.Errorf("the kernel's nftables do not take it: %w", err)
	default:
		b.refuseAmong(f, ports[:len(ports)/2])
		b.refuseAmong(f, ports[len(ports)/2:])
	}
}

// try returns the error that the kernel would answer a table of these
// ServicePorts with. It makes none.
func try(n *node, ports ...*dataplane.ServicePort) error {
	probing := spec(n.family)
	probing.Name += "-probe"
	t := nft.NewTable(n.family, probing, &nft.Counts{})
	defer func() { _ = t.Close() }()
	d, err := whole(t, rulesFor(n), affinity.NewIDs(), &nft.State{}, noteFor(localnet.Off))
	if err != nil {
		return err
	}
	for _, port := range ports {
		d.port(planFor(port, d.ids.Of(port)))
	}
	return t.Try(&d.first)
}

package nftables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// refuse takes out of want what cannot be programmed; that stays as it was.
func (b *backend) refuse(prev, want *dataplane.Snapshot) (*dataplane.Snapshot, []dataplane.PortError) {
	before := prev
	if before == nil {
		before = b.accepted // what is refused now and was not then stays as it was
	}
	return dataplane.Refuse(before, want, b.refusal)
}

// refusal returns why a ServicePort cannot be programmed, nil if it can.
func (b *backend) refusal(port *dataplane.ServicePort) error {
	if !slices.Contains(b.cfg.Families, port.ID.Family) {
		return fmt.Errorf("the agent programs no %s here", port.ID.Family)
	}
	if why := b.refused[port]; why != nil {
		return why
	}
	const mostRanges = 4096 // each one costs the kernel more than the one before
	for _, f := range port.Frontends {
		if len(f.Sources) > mostRanges {
			return fmt.Errorf("%s has %d source ranges; nftables takes %d at most", f.Addr, len(f.Sources), mostRanges)
		}
	}
	for _, f := range port.Frontends {
		for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
			if pool != nil && len(pool.Endpoints) > int(wayCount) {
				return fmt.Errorf("%s has %d endpoints; nftables takes %d at most", f.Addr, len(pool.Endpoints), wayCount)
			}
		}
	}
	return nil
}

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

// retryRefused asks the kernel again for the refused ServicePorts that want has: it
// may have room by now, or what it lacked. Who does not try one leaves it out of
// want. All others are forgotten.
func (b *backend) retryRefused(want *dataplane.Snapshot) {
	again := map[dataplane.Family][]*dataplane.ServicePort{}
	for port := range b.refused {
		if want.Ports.Get(port.ID) == port {
			again[port.ID.Family] = append(again[port.ID.Family], port)
		}
	}
	clear(b.refused)
	for f, ports := range again {
		b.refuseAmong(f, ports)
	}
}

// findRefused finds the ServicePorts of want that are not in prev and that the
// kernel does not take, so that the others need not wait for them. It reports
// whether it found one.
func (b *backend) findRefused(prev, want *dataplane.Snapshot) bool {
	var before dataplane.Ports
	if prev != nil {
		before = prev.Ports
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
// ever fewer of them.
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
	d, err := whole(t, n, affinity.NewIDs().Of, &nft.State{}, localnet.Off.Notes(chainInput))
	if err != nil {
		return err
	}
	if err := d.wantAll(dataplane.MakePorts(ports...), nil); err != nil {
		return err
	}
	return t.Try(&d.First)
}

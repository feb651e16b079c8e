package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
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

// findRefused tries the ServicePorts of want that are not in prev, each by
// itself, in a network namespace of its own, so that the others need not wait
// for one that the kernel does not take. It reports whether it found one.
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
	err := netns.InScratch(func() error {
		tables := map[dataplane.Family]*nft.Table{}
		for _, h := range b.halves {
			t := nft.NewTable(h.table.Family, spec(h.table.Family), &nft.Counts{})
			defer func() { _ = t.Close() }()
			d, err := whole(t, rulesFor(&node{family: h.table.Family}), newIDs(), &nft.State{}, noteFor(localnet.Off))
			if err == nil {
				err = t.Write(&d.first, nil)
			}
			if err != nil {
				return err
			}
			tables[t.Family] = t
		}
		for _, port := range dataplane.Diff(before, want.Ports) {
			if port == nil {
				continue
			}
			if err := tryPort(tables[port.ID.Family], port); isRefusal(err) {
				b.refused[port] = fmt.Errorf("the kernel's nftables do not take it: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		b.log.Warn("cannot find out which Service the kernel does not take", "error", err)
	}
	return len(b.refused) > known
}

// tryPort writes one ServicePort as if there was no other.
func tryPort(t *nft.Table, port *dataplane.ServicePort) error {
	d := newDiff(rulesFor(&node{family: t.Family}), newIDs(), nil, map[nft.Element]int{})
	d.port(planFor(port, 1))
	return t.Write(&d.first, nil)
}

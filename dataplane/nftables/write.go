package nftables

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/affinity"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// elementsAWrite is how many elements of a whole Snapshot make a transaction. All
// of one ServicePort are in the same one.
const elementsAWrite = 20_000

// half is the backend's table of one family.
type half struct {
	table     *nft.Table
	reader    *nft.Table // for Observe alongside Syncs
	noted     atomic.Pointer[half]
	log       *slog.Logger
	watch     *nft.Watch
	mark      uint32
	localhost bool // the agent is told to serve NodePorts on 127.0.0.0/8
	// routesLocalhost: the kernel is to route 127.0.0.0/8.
	routesLocalhost atomic.Bool
	// localnetFailed is why the kernel does not route 127.0.0.0/8; nil: it does as it shall.
	localnetFailed error

	// What the kernel holds; held is nil where that is unknown.
	held     *dataplane.Snapshot
	node     node
	localnet localnet.State
	refs     map[nft.Element]int
	ids      *affinity.IDs
	// remake: the kernel did not take a change, so the next one makes the table anew.
	remake bool
}

// sync makes the table as want describes.
func (h *half) sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	var err error
	known := prev != nil && h.held != nil
	h.held = nil
	if known {
		err = h.change(prev, want)
	} else {
		err = h.watch.Paused(func() error { return h.full(ctx, want) })
	}
	if err == nil {
		h.held = want
	}
	h.note()
	return err
}

// note notes what a Sync left, as far as drift needs it.
func (h *half) note() {
	if h.held == nil {
		h.noted.Store(nil)
		return
	}
	h.noted.Store(&half{table: h.reader, held: h.held, node: h.node, localnet: h.localnet, localnetFailed: h.localnetFailed, ids: h.ids})
}

// change writes what differs between two Snapshots, the first of which the
// kernel holds.
func (h *half) change(prev, want *dataplane.Snapshot) error {
	next, state := h.node, h.localnet
	if prev.Node != want.Node || !slices.Equal(prev.ServiceCIDRs, want.ServiceCIDRs) {
		next = h.nodeFor(want)
		var err error
		if state, err = next.localnet(h.localnet); err != nil {
			return err
		}
	}
	d := newDiff(rulesFor(&next), h.ids, nil, h.refs)
	if err := d.changeNode(h.table, &h.node, &next, state == h.localnet); err != nil {
		return err
	}
	if err := change(d, prev.Ports, want.Ports, func() error { return h.writePart(d, state) }); err != nil {
		return err
	}
	if err := h.writeFirst(&d.first, state); err != nil {
		return err
	}
	h.node = next
	return h.table.Write(&d.last, h.notes)
}

// full reads the table back and writes what differs.
func (h *half) full(ctx context.Context, want *dataplane.Snapshot) error {
	have, err := h.table.Read()
	if err != nil {
		return err
	}
	next := h.nodeFor(want)
	if guards := have.Chains[chainInput]; len(guards) > 0 || h.localnet != localnet.Switched {
		h.localnet = localnet.FromComments(guards)
	} // else somebody removed the guard, and we know better
	state, err := next.localnet(h.localnet)
	if err != nil {
		return err
	}
	have.Strange = have.Strange || h.remake
	before := h.ids
	h.ids = affinity.Resume(want.Ports, func(p *dataplane.ServicePort) uint32 { return cmp.Or(have.NumberOf(p, setIDs), before.Known(p)) })
	d, err := whole(h.table, rulesFor(&next), h.ids, have, noteFor(state))
	if err != nil {
		return err
	}
	for port := range want.Ports.All() {
		if port.ID.Family != h.table.Family {
			continue
		}
		d.port(planFor(port, h.ids.Of(port)))
		if err := h.writePart(d, state); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil && have.Present {
			return err
		}
	}
	d.rest()
	if err := h.writeFirst(&d.first, state); err != nil {
		return err
	}
	h.node, h.refs, h.remake = next, d.refs, false
	return h.table.Write(&d.last, h.notes)
}

// writePart writes what a diff has so far, if it is much. A table that is made
// anew in place of an old one is written in one transaction.
func (h *half) writePart(d *diff, state localnet.State) error {
	if d.first.Len() < elementsAWrite || d.first.Remake && d.first.Present {
		return nil
	}
	err := h.writeFirst(&d.first, state)
	d.first = nft.NewChange()
	return err
}

// writeFirst writes what leads connections to what is wanted. The rule that
// keeps neighbours off 127.0.0.0/8 is there as long as the kernel would let them in.
func (h *half) writeFirst(c *nft.Change, state localnet.State) error {
	if h.localnet == localnet.Switched && state == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if err := h.table.Write(c, noteFor(state)); err != nil {
		return err
	}
	h.localnet = state
	if h.table.Family == dataplane.IPv4 {
		h.routesLocalhost.Store(state != localnet.Off)
	}
	if state != localnet.Switched {
		return nil
	}
	// Where /proc/sys is read-only all the rest works without.
	err := localnet.Switch(true)
	if err != nil && h.localnetFailed == nil {
		h.log.Warn("NodePorts do not answer on 127.0.0.1", "error", err)
	}
	h.localnetFailed = err
	return nil
}

func (h *half) notes(chain string) string { return noteFor(h.localnet)(chain) }

// noteFor returns what the comments of a chain's rules carry beside their signature.
func noteFor(s localnet.State) func(string) string {
	return func(chain string) string {
		if chain == chainInput {
			return s.Note()
		}
		return ""
	}
}

// isLiberal reports whether conntrack takes TCP packets outside of the window
// for valid. Then INVALID says too little to drop a packet for (KUBE-PROXY §1.14).
func isLiberal() bool {
	n, err := sysctl.Proc.Int("net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && n != 0
}

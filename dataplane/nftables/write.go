package nftables

import (
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// elementsAWrite is how many elements of a whole Snapshot make a transaction. All
// of one ServicePort are in the same one.
const elementsAWrite = 20_000

// writePart writes what a diff has so far, if it is much. A table that is made
// anew in place of an old one is written in one transaction.
func (f *familyBackend) writePart(d *diff, state localnet.State) error {
	if d.First.Len() < elementsAWrite || d.First.Remake && d.First.Present {
		return nil
	}
	err := f.writeFirst(&d.First, state)
	d.First.Reset()
	return err
}

// writeFirst writes what leads connections to what is wanted. The rule that
// keeps neighbours off 127.0.0.0/8 is there as long as the kernel would let them in.
func (f *familyBackend) writeFirst(c *nft.Change, state localnet.State) error {
	if f.localnet == localnet.Switched && state == localnet.Off {
		if err := localnet.Switch(false); err != nil {
			return err
		}
	}
	if err := f.table.Write(c, state.Notes(chainInput)); err != nil {
		return err
	}
	f.localnet = state
	if f.table.Family == dataplane.IPv4 {
		f.routesLocalhost.Store(state != localnet.Off)
	}
	if state != localnet.Switched {
		return nil
	}
	// Where /proc/sys is read-only all the rest works without.
	err := localnet.Switch(true)
	if err != nil && f.localnetFailed == nil {
		f.log.Warn("NodePorts do not answer on 127.0.0.1", "error", err)
	}
	f.localnetFailed = err
	return nil
}

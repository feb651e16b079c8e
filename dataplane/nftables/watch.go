package nftables

import "github.com/switchyard-io/switchyard/dataplane/internal/localnet"

// Disturbed implements dataplane.Watched.
func (b *backend) Disturbed() <-chan struct{} { return b.watch.Disturbed() }

// Undisturbed implements dataplane.Watched. The kernel says nothing of its
// settings, so that one is read.
func (b *backend) Undisturbed() bool {
	for _, h := range b.halves {
		if !h.routesLocalhost.Load() {
			continue
		}
		if on, err := localnet.IsOn(); err != nil || !on {
			return false
		}
	}
	return b.watch.Undisturbed()
}

package iptables

import (
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestObserveAlongside: the tables are read while Syncs change them (for -race),
// and what is read after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		b := k.open()
		with := mixed()
		without := *with
		without.Ports = with.Ports.With(nil, []dataplane.PortID{port("shop/empty", dataplane.TCP).ID, in(dataplane.IPv6, port("shop/empty", dataplane.TCP)).ID})
		k.mustSync(b, nil, with)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 10 {
				if _, err := b.Observe(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}()
		for prev, want := with, &without; ; prev, want = want, prev {
			k.mustSync(b, prev, want)
			select {
			case <-done:
				k.mustHold(b, want)
				return
			default:
			}
		}
	})
}

package iptables

import (
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/backendtest"
)

// TestObserveAlongside: the tables are read while Syncs change them (for -race),
// and what is read after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		b := k.open()
		with := mixed()
		without := *with
		without.Ports = with.Ports.With(nil, []dataplane.PortID{port("shop/empty", dataplane.TCP).ID, in(dataplane.IPv6, port("shop/empty", dataplane.TCP)).ID})
		backendtest.ObserveAlongside(t, b, with, &without)
	})
}

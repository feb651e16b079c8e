package dataplane

import (
	"fmt"
	"net/netip"
)

// This file lists all that a Backend may offer in addition to its three methods.
// A Backend has an ability if it has the methods of that interface. What is true of
// a mechanism before it is opened is a field of Driver.

// Traits say how a Backend is best called. A Backend that has none of them needs
// no method Traits.
type Traits struct {
	// CostGrows says that the cost of a Sync grows with all ServicePorts, and not just
	// with those that change.
	CostGrows bool
	// ObservesAlongside says that Observe may be called while another method runs. If
	// a Sync runs meanwhile, the Observation may have some of its changes, and its
	// Other may be of what the kernel held before or after.
	ObservesAlongside bool
}

// TraitsOf returns a Backend's Traits.
func TraitsOf(b Backend) Traits {
	if t, ok := b.(interface{ Traits() Traits }); ok {
		return t.Traits()
	}
	return Traits{}
}

// Watched is a Backend that notices at once when somebody else changes what it
// wrote. Its methods may be called alongside all others.
type Watched interface {
	// Disturbed receives after somebody else changed it, or may have.
	Disturbed() <-chan struct{}
	// Undisturbed reports that nobody has since the last Observe, so that another
	// one would read what that read and what Syncs wrote since.
	Undisturbed() bool
}

// Familied is a Backend that may program fewer families than it was asked for.
type Familied interface {
	// Families returns those that it programs.
	Families() []Family
}

// FamiliesOf returns the families that a Backend programs, which was asked for some.
func FamiliesOf(b Backend, asked []Family) []Family {
	if f, ok := b.(Familied); ok {
		return f.Families()
	}
	return asked
}

// FamilyHolder is a Backend whose Sync may fail for one family alone, with a
// *FamilyError. See Resting.
type FamilyHolder interface {
	// Hold makes later Syncs leave these families alone, whatever prev is, until
	// the next call; want then has their ServicePorts as they were last known.
	// Observe does not read them. It may be called alongside Observe.
	Hold(families []Family)
}

// Layered is a Backend that is made of several layers.
type Layered interface {
	// Layers returns the names of those that it uses, of its Driver's.
	Layers() []string
}

// LayerError says which layer of a Layered Backend failed. Its Layer is one of
// the Driver's Layers.
type LayerError struct {
	Layer string
	Err   error
}

func (e *LayerError) Error() string { return fmt.Sprintf("%s: %v", e.Layer, e.Err) }
func (e *LayerError) Unwrap() error { return e.Err }

// Counter is a Backend that counts. Its method may be called alongside all others.
type Counter interface {
	// Counts reads the numbers that it reports of itself.
	Counts() ([]Count, error)
}

// Count is a number that a Counter reports, for the metrics.
type Count struct {
	Name   string // of the metric: kubeproxy_… where kube-proxy has it, else switchyard_…
	Help   string
	Grows  bool // it only grows: a counter, not a gauge
	Labels []Label
	Value  float64
}

// Label tells Counts of one name apart; all of them have the same labels in the
// same order.
type Label struct{ Name, Value string }

// SocketTranslator is a Backend that may translate connections at their sockets,
// on top of a packet backend. Its methods may be called alongside all others.
type SocketTranslator interface {
	// Sockets returns how it does so now; nil: it does not.
	Sockets() *Sockets
	// SocketsOf returns which way the connections of a pod take, by an address of it.
	SocketsOf(client netip.Addr) SocketWay
}

// Sockets is how connections are translated at their sockets.
type Sockets struct {
	Mode   string // --socket-lb
	Base   string // the packet backend that serves what sockets leave
	Reason string // why the mode means less here than it says; "": it does not
	// LeftPorts are how many ServicePorts sockets leave to the base, in part or
	// wholly, by reason.
	LeftPorts map[string]int
	// Namespaces are how many network namespaces of pods are translated, and
	// LeftNamespaces how many are left to the base, by reason. Both are of mode auto.
	Namespaces     int
	LeftNamespaces map[string]int
	// Draining is what an older version still has in the kernel; "": nothing.
	Draining string
}

// SocketWay is which way the connections of a pod take.
type SocketWay struct {
	AtSocket bool   // they are translated at the socket
	Why      string // in plain words
}

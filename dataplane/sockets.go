package dataplane

import "net/netip"

// SocketTranslator is a Backend that may translate connections at their sockets,
// on top of a packet backend. Its methods may be called beside all others.
type SocketTranslator interface {
	// Sockets is how it does so now; nil: it does not.
	Sockets() *Sockets
	// SocketsOf is which way the connections of a pod take, by an address of it.
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

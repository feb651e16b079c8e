package dataplane

import "net/netip"

// Flow is a connection through a Service, as the kernel's table has it.
type Flow struct {
	Protocol Protocol
	Dst      netip.AddrPort // where the client sends to
	Endpoint netip.AddrPort // who answers
	Counted  bool           // the kernel counts its bytes
	Bytes    uint64         // of both directions
}

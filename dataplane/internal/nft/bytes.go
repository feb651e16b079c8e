package nft

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// The parts of keys and data. Each is padded to whole registers of four bytes.

// Number returns a number as registers hold it.
func Number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// NumberBytes returns a number as a part of a key.
func NumberBytes(n uint32) string { return string(Number(n)) }

// NumberOf reads what NumberBytes wrote; what is no number is 0.
func NumberOf(s string) uint32 {
	if len(s) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32([]byte(s))
}

// AddrBytes returns an address as a part of a key.
func AddrBytes(a netip.Addr) string { return string(a.AsSlice()) }

// AddrOf reads what AddrBytes wrote.
func AddrOf(s string) netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(s))
	return a
}

// EndpointBytes returns an endpoint's address and port.
func EndpointBytes(a netip.AddrPort) string { return AddrBytes(a.Addr()) + portBytes(a.Port()) }

// EndpointOf reads what EndpointBytes wrote.
func EndpointOf(s string, f dataplane.Family) netip.AddrPort {
	n := AddrLen(f)
	if len(s) < n+2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(AddrOf(s[:n]), binary.BigEndian.Uint16([]byte(s[n:])))
}

// PlaceBytes returns a place: address, protocol and port.
func PlaceBytes(a netip.Addr, p dataplane.Protocol, port uint16) string {
	return AddrBytes(a) + string([]byte{byte(p), 0, 0, 0}) + portBytes(port)
}

// NodePlaceBytes returns the place of a NodePort: protocol and port.
func NodePlaceBytes(p dataplane.Protocol, port uint16) string {
	return string([]byte{byte(p), 0, 0, 0}) + portBytes(port)
}

// NodePlaceOf reads what NodePlaceBytes wrote.
func NodePlaceOf(place string) (dataplane.Protocol, uint16) {
	if len(place) < 8 {
		return 0, 0
	}
	return dataplane.Protocol(place[0]), binary.BigEndian.Uint16([]byte(place[4:]))
}

// PlaceOf reads what PlaceBytes wrote.
func PlaceOf(place string, f dataplane.Family) (netip.Addr, dataplane.Protocol, uint16) {
	n := AddrLen(f)
	if len(place) < PlaceLen(f) {
		return netip.Addr{}, 0, 0
	}
	return AddrOf(place[:n]), dataplane.Protocol(place[n]), binary.BigEndian.Uint16([]byte(place[n+4:]))
}

// AddrLen returns how many bytes an address takes.
func AddrLen(f dataplane.Family) int {
	if f == dataplane.IPv4 {
		return 4
	}
	return 16
}

// PlaceLen returns how many bytes a place takes.
func PlaceLen(f dataplane.Family) int { return AddrLen(f) + 8 }

func portBytes(p uint16) string { return string([]byte{byte(p >> 8), byte(p), 0, 0}) }

// Interval is the addresses from First to Last.
type Interval struct{ First, Last netip.Addr }

// Disjoint returns ranges as intervals. The kernel refuses intervals that
// overlap, so a range within another one is left out.
func Disjoint(ranges []netip.Prefix) []Interval {
	sorted := make([]netip.Prefix, 0, len(ranges))
	for _, r := range ranges {
		sorted = append(sorted, r.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []Interval
	var wide netip.Prefix // the one before that was not left out
	for _, r := range sorted {
		if !wide.IsValid() || !wide.Contains(r.Addr()) {
			out = append(out, Interval{r.Addr(), lastOf(r)})
			wide = r
		}
	}
	return out
}

// lastOf returns the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

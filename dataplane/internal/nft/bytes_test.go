package nft

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestDisjoint: ranges become intervals that the kernel takes together.
func TestDisjoint(t *testing.T) {
	for _, tc := range []struct {
		name   string
		ranges []string
		want   []string
	}{
		{"none", nil, nil},
		{"apart, in another order", []string{"203.0.113.7/32", "198.51.100.0/24"}, []string{"198.51.100.0-198.51.100.255", "203.0.113.7-203.0.113.7"}},
		{"side by side", []string{"10.0.0.0/9", "10.128.0.0/9"}, []string{"10.0.0.0-10.127.255.255", "10.128.0.0-10.255.255.255"}},
		{"one within another", []string{"10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32"}, []string{"10.0.0.0-10.255.255.255"}},
		{"twice the same, host bits set", []string{"10.1.2.3/8", "10.0.0.0/8"}, []string{"10.0.0.0-10.255.255.255"}},
		{"IPv6", []string{"2001:db8::/32", "2001:db8:1::/48"}, []string{"2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var ranges []netip.Prefix
			for _, r := range tc.ranges {
				ranges = append(ranges, netip.MustParsePrefix(r))
			}
			var got []string
			for _, i := range Disjoint(ranges) {
				got = append(got, i.First.String()+"-"+i.Last.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestBytes: what is written into keys and data is read from them.
func TestBytes(t *testing.T) {
	for _, text := range []string{"10.96.0.10:80", "[fd96::a]:65535"} {
		at := netip.MustParseAddrPort(text)
		family := dataplane.FamilyOf(at.Addr())
		if got := EndpointOf(EndpointBytes(at), family); got != at {
			t.Errorf("endpoint %s is read as %s", at, got)
		}
		place := PlaceBytes(at.Addr(), dataplane.SCTP, at.Port())
		if a, p, n := PlaceOf(place, family); a != at.Addr() || p != dataplane.SCTP || n != at.Port() || len(place) != PlaceLen(family) {
			t.Errorf("place %s is read as %s %s %d", at, a, p, n)
		}
		if p, n := NodePlaceOf(NodePlaceBytes(dataplane.UDP, at.Port())); p != dataplane.UDP || n != at.Port() {
			t.Errorf("NodePort %d is read as %s %d", at.Port(), p, n)
		}
	}
	if n := NumberOf(NumberBytes(123456789)); n != 123456789 {
		t.Errorf("a number is read as %d", n)
	}
}

package conntrack

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestEachStanding: what has its destination translated and goes on stands.
func TestEachStanding(t *testing.T) {
	enterNetns(t)
	at := netip.MustParseAddrPort
	service, pod := at("10.96.0.1:80"), at("10.1.0.1:8080")
	for n, tc := range []struct {
		name   string
		entry  entry
		state  uint8
		stands bool
	}{
		{"TCP that stands", entry{dataplane.TCP, service, pod}, nl.TCP_CONNTRACK_ESTABLISHED, true},
		{"TCP over IPv6", entry{dataplane.TCP, at("[fd00::1]:80"), at("[fd01::1]:8080")}, nl.TCP_CONNTRACK_ESTABLISHED, true},
		{"TCP that one side has ended", entry{dataplane.TCP, service, pod}, nl.TCP_CONNTRACK_CLOSE_WAIT, true},
		{"TCP without an answer", entry{dataplane.TCP, service, pod}, nl.TCP_CONNTRACK_SYN_SENT, false},
		{"TCP that both sides have ended", entry{dataplane.TCP, service, pod}, nl.TCP_CONNTRACK_TIME_WAIT, false},
		{"TCP that was reset", entry{dataplane.TCP, service, pod}, nl.TCP_CONNTRACK_CLOSE, false},
		{"TCP to the endpoint itself", entry{dataplane.TCP, pod, pod}, nl.TCP_CONNTRACK_ESTABLISHED, false},
		{"UDP", entry{dataplane.UDP, service, pod}, 0, false},
	} {
		tc.entry.insertIn(t, byte(n+1), tc.state)
		family := dataplane.FamilyOf(tc.entry.dst.Addr())
		who, _ := netip.AddrFromSlice(client(family, byte(n+1)))
		found := false
		err := EachStanding(t.Context(), family, func(s Standing) {
			found = found || s == Standing{Protocol: tc.entry.protocol, Endpoint: tc.entry.reply, Client: netip.AddrPortFrom(who.Unmap(), 40000)}
		})
		if err != nil || found != tc.stands {
			t.Errorf("%s: found %t, want %t, error %v", tc.name, found, tc.stands, err)
		}
	}
}

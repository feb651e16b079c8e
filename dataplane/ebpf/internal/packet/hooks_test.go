package packet

import (
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDevicesWithoutALinkLayerHeader(t *testing.T) {
	for _, tc := range []struct {
		what, encap, address string
		bare                 bool
	}{
		{"Ethernet", "ether", "02:00:00:00:00:01", false},
		{"netkit in L3 mode, which has an Ethernet header of zeros", "ether", "", false},
		{"lo", "loopback", "", false},
		{"WireGuard, tun", "none", "", true},
		{"ipip for any address", "ipip", "", true},
		{"ipip with an address of its own", "ipip", "0a:00:00:01", true},
		{"IPv4 in IPv6", "tunnel6", "20:01:0d:b8:00:00:00:00:00:00:00:00:00:00:00:01", true},
		{"sit", "sit", "0a:00:00:01", true},
		{"GRE", "gre", "0a:00:00:01", true},
		{"GRE in IPv6", ip6gre, "", true},
		{"a modem", rawIP, "", true},
		{"PPP", "ppp", "", true},
	} {
		l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{EncapType: tc.encap}}
		for i := 0; i+1 < len(tc.address); i += 3 {
			l.HardwareAddr = append(l.HardwareAddr, 1)
		}
		if got := isBare(l); got != tc.bare {
			t.Errorf("%s: isBare is %t", tc.what, got)
		}
	}
}

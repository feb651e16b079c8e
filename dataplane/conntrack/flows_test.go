package conntrack

import (
	"maps"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestEndUDP: what IPVS translates goes, what the kernel's NAT or nobody does stays.
func TestEndUDP(t *testing.T) {
	enterNetns(t)
	at := netip.MustParseAddrPort
	for _, words := range [][]string{
		{"nft", "add table ip nat"},
		{"nft", "add chain ip nat out { type nat hook output priority -100; }"},
		{"nft", "add rule ip nat out ip daddr 127.0.0.9 udp dport 53 dnat to 127.0.0.1:5353"},
	} {
		run(t, words...)
	}
	dial, err := net.Dial("udp", "127.0.0.9:53") // client number 1, by the kernel's NAT
	if err == nil {
		_, err = dial.Write([]byte("question"))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dial.Close() }()
	const translated, other, straight, ofTCP = 11, 12, 13, 14
	entry{dataplane.UDP, at("127.0.0.9:53"), at("10.1.0.1:53")}.insert(t, translated)
	entry{dataplane.UDP, at("10.96.0.2:53"), at("10.1.0.1:53")}.insert(t, other)
	entry{dataplane.UDP, at("127.0.0.8:53"), at("127.0.0.8:53")}.insert(t, straight)
	entry{dataplane.TCP, at("127.0.0.9:53"), at("10.1.0.1:53")}.insert(t, ofTCP)
	n, err := EndUDP(t.Context(), dataplane.IPv4, func(to netip.AddrPort) bool { return to.Addr().IsLoopback() })
	have := clients(t, dataplane.IPv4)
	if want := (map[byte]bool{1: true, other: true, straight: true, ofTCP: true}); err != nil || n != 1 || !maps.Equal(have, want) {
		t.Errorf("%d ended, %v; entries of the clients %v, want %v", n, err, have, want)
	}
}

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

package watcher

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

func prefixes(words string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

// TestNodePortAddresses: KUBE-PROXY §1.10.
func TestNodePortAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	local := prefixes("127.0.0.0/8 127.0.0.1/32 169.254.20.10/32 192.0.2.1/32 198.51.100.7/32 ::1/128 2001:db8::1/128 2001:db8:1::7/128 fe80::1/128")
	v4 := "169.254.20.10/32 192.0.2.1/32 198.51.100.7/32"
	v6 := "2001:db8::1/128 2001:db8:1::7/128"
	both := []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}
	for _, tc := range []struct {
		name      string
		words     string
		nodeIPs   []netip.Addr
		localhost bool
		want      string
	}{
		{"unset: all, and no loopback", "", both, false, v4 + " " + v6},
		{"unset, with localhost NodePorts: never ::1", "", both, true, "127.0.0.0/8 " + v4 + " " + v6},
		{"all", "all", both, true, "127.0.0.0/8 " + v4 + " " + v6},
		{"a CIDR; nothing said of IPv6 means all of it", "192.0.2.0/24", both, true, "192.0.2.1/32 " + v6},
		{"a CIDR of each", "192.0.2.0/24 2001:db8:1::/64", both, true, "192.0.2.1/32 2001:db8:1::7/128"},
		{"a CIDR that no address is in", "203.0.113.0/24 2001:db8:9::/64", both, true, ""},
		{"primary", "primary", both, true, "192.0.2.1/32 2001:db8::1/128"},
		{"primary and a CIDR", "primary 198.51.100.0/24", both, true, "192.0.2.1/32 198.51.100.7/32 2001:db8::1/128"},
		{"primary of one family: the other stays closed", "primary", both[:1], true, "192.0.2.1/32"},
		{"primary, not known yet", "primary", nil, true, ""},
		{"primary that is loopback", "primary", []netip.Addr{addr("127.0.0.1"), addr("::1")}, true, ""},
		{"primary that is on no interface", "primary", []netip.Addr{addr("203.0.113.5")}, true, ""},
		{"localhost", "localhost", both, true, "127.0.0.0/8"},
		{"localhost, with localhost NodePorts off", "localhost", both, false, ""},
		{"part of 127.0.0.0/8 is all of it", "127.0.0.1/32 ::1/128", both, true, "127.0.0.0/8"},
		{"localhost and primary", "localhost primary", both, true, "127.0.0.0/8 192.0.2.1/32 2001:db8::1/128"},
		{"link-local IPv6 only by name", "fe80::/10", both, false, v4 + " fe80::1/128"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := parseNodePortAddresses(strings.Fields(tc.words))
			if err != nil {
				t.Fatal(err)
			}
			got := n.choose([]dataplane.Family{dataplane.IPv4, dataplane.IPv6}, local, tc.nodeIPs, tc.localhost)
			if g := strings.Trim(fmt.Sprint(got), "[]"); g != tc.want {
				t.Errorf("\n got %s\nwant %s", g, tc.want)
			}
		})
	}
	t.Run("local routes to prefixes", func(t *testing.T) {
		local := append(prefixes("10.77.0.0/24 2001:db8:77::/64"), local...)
		both := []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
		for words, want := range map[string]string{
			"":                                "10.77.0.0/24 " + v4 + " 2001:db8::1/128 2001:db8:1::7/128 2001:db8:77::/64",
			"10.0.0.0/8 2001:db8:77::/48":     "10.77.0.0/24 2001:db8:77::/64",
			"10.77.0.64/26 2001:db8:77::5/96": "10.77.0.64/26 2001:db8:77::/96",
			"192.0.2.0/24 2001:db8:1::/64":    "192.0.2.1/32 2001:db8:1::7/128",
			"10.77.0.9/32 10.77.0.9/32 ::/0":  "10.77.0.9/32 2001:db8::1/128 2001:db8:1::7/128 2001:db8:77::/64",
		} {
			n, err := parseNodePortAddresses(strings.Fields(words))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Trim(fmt.Sprint(n.choose(both, local, nil, false)), "[]"); got != want {
				t.Errorf("%q\n got %s\nwant %s", words, got, want)
			}
		}
		want := "10.77.0.0/24 " + v4 + " 2001:db8::1/128 2001:db8:1::7/128 2001:db8:77::/64"
		if got := strings.Trim(fmt.Sprint(bound(both, local)), "[]"); got != want {
			t.Errorf("bound\n got %s\nwant %s", got, want)
		}
	})
	t.Run("a node of one family", func(t *testing.T) {
		got := nodePortAddresses{}.choose([]dataplane.Family{dataplane.IPv6}, local, both, true)
		if g := strings.Trim(fmt.Sprint(got), "[]"); g != v6 {
			t.Error(g)
		}
	})
	for _, words := range []string{"10.0.0.0", "primary primary", "everything", "10.0.0.0/33"} {
		if _, err := parseNodePortAddresses(strings.Fields(words)); err == nil {
			t.Errorf("%q is taken", words)
		}
	}
}

// TestEverywhere: in which families nodePortAddresses cover every address.
func TestEverywhere(t *testing.T) {
	nodeIPs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for words, want := range map[string]string{
		"":                       "[IPv4 IPv6]",
		"all":                    "[IPv4 IPv6]",
		"all primary":            "[IPv4 IPv6]",
		"0.0.0.0/0 192.0.2.0/24": "[IPv4 IPv6]", // of IPv6 nothing is said, which means all
		"192.0.2.0/24":           "[IPv6]",
		"2001:db8::/64":          "[IPv4]",
		"primary":                "[]",
		"localhost":              "[]",
		"0.0.0.0/1 128.0.0.0/1":  "[IPv6]", // said otherwise, and then each address counts
	} {
		n, err := parseNodePortAddresses(strings.Fields(words))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%v", n.everywhere([]dataplane.Family{dataplane.IPv4, dataplane.IPv6}, nodeIPs)); got != want {
			t.Errorf("%q: got %s, want %s", words, got, want)
		}
	}
}

package packet

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Packets that are odd, and what becomes of each: translated like any other, or
// left to the stack as it came.

// odd is one of them, as a function of where it goes: to the frontend, and
// then, if it is translated, to the endpoint.
type odd struct {
	name       string
	translated bool
	packet     func(src, dst netip.AddrPort) []byte // from the network header on
}

var somePayload = []byte("a payload of no meaning")

// odd4 are those over IPv4.
func odd4() []odd {
	with := func(protocol byte, fragment uint16, options, l4 []byte, src, dst netip.AddrPort) []byte {
		return ip4(src.Addr(), dst.Addr(), protocol, fragment, options, l4)
	}
	nops := func(n int) []byte { return bytes.Repeat([]byte{1}, n) }
	return []odd{
		{"TCP behind 4 bytes of options", true, func(src, dst netip.AddrPort) []byte {
			return with(unix.IPPROTO_TCP, 0, nops(4), tcp(src, dst, flagSYN, nil, nil), src, dst)
		}},
		{"TCP behind 40 bytes of options, the most", true, func(src, dst netip.AddrPort) []byte {
			return with(unix.IPPROTO_TCP, 0, nops(40), tcp(src, dst, flagSYN, nil, nil), src, dst)
		}},
		{"SCTP behind options", true, func(src, dst netip.AddrPort) []byte {
			return with(unix.IPPROTO_SCTP, 0, nops(8), sctp(src.Port(), dst.Port(), 1), src, dst)
		}},
		{"bytes behind the end, as Ethernet pads", true, func(src, dst netip.AddrPort) []byte {
			return append(ip(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp(src, dst, flagSYN, nil, nil)), 1, 2, 3, 4, 5, 6)
		}},
		{"SCTP with bytes behind the end", true, func(src, dst netip.AddrPort) []byte {
			return append(ip(src.Addr(), dst.Addr(), unix.IPPROTO_SCTP, sctp(src.Port(), dst.Port(), 1)), 1, 2, 3, 4)
		}},
		{"UDP without a checksum", true, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, udp(src, dst, false, somePayload))
		}},
		{"UDP whose datagram is shorter than the packet", true, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, append(udp(src, dst, false, somePayload), 9, 9))
		}},
		{"a first fragment of 4 bytes", false, func(src, dst netip.AddrPort) []byte {
			return with(unix.IPPROTO_UDP, 0x2000, nil, udp(src, dst, true, somePayload)[:4], src, dst)
		}},
		{"a total length of 0", false, func(src, dst netip.AddrPort) []byte {
			b := ip(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp(src, dst, flagSYN, nil, nil))
			b[2], b[3] = 0, 0
			return b
		}},
		{"ICMP for IPv6", false, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 0, 0, 0})
		}},
		{"IPv6 inside", false, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_IPV6, tcp(src, dst, flagSYN, nil, nil))
		}},
	}
}

// odd6 are those over IPv6.
func odd6() []odd {
	chain := func(n int, src, dst netip.AddrPort) []byte {
		l4, next := tcp(src, dst, flagSYN, nil, nil), byte(unix.IPPROTO_TCP)
		for range n {
			l4, next = extension(next, 0, l4), unix.IPPROTO_DSTOPTS
		}
		return ip6(src.Addr(), dst.Addr(), next, l4)
	}
	behind := func(kind byte, l4 []byte, src, dst netip.AddrPort) []byte {
		return ip6(src.Addr(), dst.Addr(), kind, l4)
	}
	routing := func(segments byte, src, dst netip.AddrPort) []byte {
		l4 := extension(unix.IPPROTO_TCP, 2, tcp(src, dst, flagSYN, nil, nil))
		l4[3] = segments
		return behind(unix.IPPROTO_ROUTING, l4, src, dst)
	}
	return []odd{
		{"hop-by-hop options", true, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_HOPOPTS, extension(unix.IPPROTO_UDP, 3, udp(src, dst, true, somePayload)), src, dst)
		}},
		{"a routing header that was followed to its end", true, func(src, dst netip.AddrPort) []byte { return routing(0, src, dst) }},
		{"a routing header with segments left", false, func(src, dst netip.AddrPort) []byte { return routing(1, src, dst) }},
		{"6 extension headers, the most", true, func(src, dst netip.AddrPort) []byte { return chain(6, src, dst) }},
		{"7 extension headers", false, func(src, dst netip.AddrPort) []byte { return chain(7, src, dst) }},
		{"a fragment header around a whole datagram", true, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_UDP, 0, udp(src, dst, true, somePayload)), src, dst)
		}},
		{"two fragment headers", false, func(src, dst netip.AddrPort) []byte {
			l4 := fragment6(unix.IPPROTO_FRAGMENT, 1, fragment6(unix.IPPROTO_UDP, 1, udp(src, dst, true, somePayload)))
			return behind(unix.IPPROTO_FRAGMENT, l4, src, dst)
		}},
		{"an extension header past the end", false, func(src, dst netip.AddrPort) []byte {
			l4 := extension(unix.IPPROTO_TCP, 0, tcp(src, dst, flagSYN, nil, nil))
			l4[1] = 200
			return behind(unix.IPPROTO_DSTOPTS, l4, src, dst)
		}},
		{"an extension header up to the end, and nothing behind it", false, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_DSTOPTS, extension(unix.IPPROTO_TCP, 0, nil), src, dst)
		}},
		{"an authentication header", false, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_AH, extension(unix.IPPROTO_TCP, 1, tcp(src, dst, flagSYN, nil, nil)), src, dst)
		}},
		{"no next header", false, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_NONE, tcp(src, dst, flagSYN, nil, nil), src, dst)
		}},
		{"UDP without a checksum", true, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_UDP, udp(src, dst, false, somePayload), src, dst)
		}},
		{"a payload length of 0", false, func(src, dst netip.AddrPort) []byte {
			b := ip(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp(src, dst, flagSYN, nil, nil))
			b[4], b[5] = 0, 0
			return b
		}},
		{"ICMP for IPv4", false, func(src, dst netip.AddrPort) []byte {
			return behind(unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 0, 0, 0}, src, dst)
		}},
	}
}

// oddBoth are those over either.
func oddBoth() []odd {
	var all []odd
	segment := func(name string, translated bool, flags byte, options, payload []byte) {
		all = append(all, odd{name, translated, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp(src, dst, flags, options, payload))
		}})
	}
	segment("a SYN with 40 bytes of TCP options, the most", true, flagSYN, make([]byte, 40), nil)
	segment("a SYN with data", true, flagSYN, nil, somePayload)
	segment("a SYN with ECN", true, flagSYN|0xc0, nil, nil)
	segment("a SYN ACK", false, flagSYN|flagACK, nil, nil)
	segment("a SYN FIN", false, flagSYN|flagFIN, nil, nil)
	segment("a SYN RST", false, flagSYN|flagRST, nil, nil)
	segment("a RST", false, flagRST, nil, nil)
	segment("no flags at all", false, 0, nil, nil)
	for chunk, translated := range map[byte]bool{0: false, 1: true, 2: false, 6: false, 10: false, 14: false, 255: false} {
		all = append(all, odd{fmt.Sprint("SCTP chunk ", chunk), translated, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), unix.IPPROTO_SCTP, sctp(src.Port(), dst.Port(), chunk))
		}})
	}
	for _, protocol := range []byte{unix.IPPROTO_ESP, unix.IPPROTO_GRE, unix.IPPROTO_DCCP, 255} {
		all = append(all, odd{fmt.Sprint("protocol ", protocol), false, func(src, dst netip.AddrPort) []byte {
			return ip(src.Addr(), dst.Addr(), protocol, tcp(src, dst, flagSYN, nil, nil))
		}})
	}
	return append(all, odd{"a UDP datagram of no bytes", true, func(src, dst netip.AddrPort) []byte {
		return ip(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, udp(src, dst, true, nil))
	}})
}

// way is client, frontend and endpoint of one family.
type way struct {
	name                       string
	client, frontend, endpoint netip.AddrPort
}

// ways are those of the Service of these tests. The addresses of the bare ones
// are such that the packet begins as an Ethernet frame would: the kernel takes
// from there which protocol a packet is of that it runs a program on.
func ways(bare bool) []way {
	c4, c6 := client4, client6
	if bare {
		c4, c6 = netip.MustParseAddr("8.0.2.7"), netip.MustParseAddr("2001:db8:86dd::7")
	}
	return []way{
		{"IPv4", netip.AddrPortFrom(c4, clientPort), netip.AddrPortFrom(frontend4, frontendPort), netip.AddrPortFrom(endpoint4, endpointPort)},
		{"IPv6", netip.AddrPortFrom(c6, clientPort), netip.AddrPortFrom(frontend6, frontendPort), netip.AddrPortFrom(endpoint6, endpointPort)},
	}
}

// emptyConnections forgets all connections.
func emptyConnections(t testing.TB, c *ebpf.Collection) {
	t.Helper()
	var keys []tuple
	var key tuple
	var value conn
	all := c.Maps[mapConnections].Iterate()
	for all.Next(&key, &value) {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := c.Maps[mapConnections].Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOdd: odd packets are translated to the last byte, or left as they are,
// with and without a link layer header.
func TestOdd(t *testing.T) {
	c := programs(t)
	for _, p := range []struct {
		program string
		bare    bool
	}{{progIn, false}, {progInBare, true}} {
		for i, w := range ways(p.bare) {
			for _, o := range slices.Concat([][]odd{odd4(), odd6()}[i], oddBoth()) {
				t.Run(p.program+" "+w.name+" "+o.name, func(t *testing.T) {
					emptyConnections(t, c)
					in, want := o.packet(w.client, w.frontend), o.packet(w.client, w.frontend)
					if o.translated {
						want = o.packet(w.client, w.endpoint)
					}
					if !p.bare {
						in, want = frameOf(in), frameOf(want)
					} else if short := 14 + 40 - len(in); short > 0 { // the kernel runs programs on no less
						in, want = append(in, make([]byte, short)...), append(want, make([]byte, short)...)
					}
					verdict, out := run(t, c.Programs[p.program], in)
					if verdict != passed || !bytes.Equal(out, want) {
						t.Errorf("verdict %d, packet\n%x, want\n%x", int32(verdict), out, want)
					}
					var key tuple
					var value conn
					if opened := c.Maps[mapConnections].Iterate().Next(&key, &value); opened != o.translated {
						t.Errorf("it opened a connection: %t", opened)
					}
				})
			}
		}
	}
}

// TestAnswers: what leaves as an answer is translated whatever its flags, and
// left alone by the program for packets that begin elsewhere.
func TestAnswers(t *testing.T) {
	c := programs(t)
	for _, w := range ways(false) {
		run(t, c.Programs[progIn], frameOf(ip(w.client.Addr(), w.frontend.Addr(), unix.IPPROTO_TCP, tcp(w.client, w.frontend, flagSYN, nil, nil))))
		answer := func(from netip.AddrPort, flags byte) []byte {
			return frameOf(ip(from.Addr(), w.client.Addr(), unix.IPPROTO_TCP, tcp(from, w.client, flags, make([]byte, 12), somePayload)))
		}
		for _, flags := range []byte{flagSYN | flagACK, flagACK, flagACK | flagFIN, flagRST, 0} {
			verdict, out := run(t, c.Programs[progOut], answer(w.endpoint, flags))
			if want := answer(w.frontend, flags); verdict != passed || !bytes.Equal(out, want) {
				t.Errorf("%s, flags %#x: verdict %d, packet\n%x, want\n%x", w.name, flags, int32(verdict), out, want)
			}
			in := answer(w.endpoint, flags)
			if verdict, out = run(t, c.Programs[progOutBare], in); verdict != passed || !bytes.Equal(in, out) {
				t.Errorf("%s, flags %#x, taken for bare: verdict %d, packet\n%x, was\n%x", w.name, flags, int32(verdict), out, in)
			}
		}
	}
}

// TestForeignFrames: what is no IP packet by its type is left alone, whatever
// is inside.
func TestForeignFrames(t *testing.T) {
	c := programs(t)
	packet := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_TCP)[14:]
	vlan := append([]byte{0, 5, 8, 0}, packet...)
	for name, in := range map[string][]byte{
		"ARP": ethernet(0x0806, packet), "LLDP": ethernet(0x88cc, packet), "802.3 length": ethernet(0x0040, packet), "PPPoE": ethernet(0x8864, packet),
		"VLAN": ethernet(0x8100, vlan), "QinQ": ethernet(0x88a8, vlan), "IPv6 type, IPv4 inside": ethernet(typeIPv6, packet), "IPv4 type, zeros inside": ethernet(typeIPv4, make([]byte, 20)),
	} {
		for _, p := range []string{progIn, progOut, progInBare, progOutBare} {
			verdict, out := run(t, c.Programs[p], in)
			if verdict != passed || !bytes.Equal(in, out) {
				t.Errorf("%s in %s: verdict %d, packet\n%x, was\n%x", name, p, int32(verdict), out, in)
			}
		}
	}
}

// TestFragments: later fragments follow the first one; those of which none was
// seen are dropped where the address is a Service's alone, and passed elsewhere.
func TestFragments(t *testing.T) {
	for i, w := range ways(false) {
		t.Run(w.name, func(t *testing.T) {
			c := programs(t)
			parts := func(dst netip.AddrPort) (first, later []byte) {
				whole := udp(w.client, dst, true, bytes.Repeat([]byte("fragment"), 200))
				if i == 0 {
					return frameOf(ip4(w.client.Addr(), dst.Addr(), unix.IPPROTO_UDP, 0x2000, nil, whole[:800])),
						frameOf(ip4(w.client.Addr(), dst.Addr(), unix.IPPROTO_UDP, 800/8, nil, whole[800:]))
				}
				return frameOf(ip6(w.client.Addr(), dst.Addr(), unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_UDP, 1, whole[:800]))),
					frameOf(ip6(w.client.Addr(), dst.Addr(), unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_UDP, 800, whole[800:])))
			}
			first, later := parts(w.frontend)
			wantFirst, wantLater := parts(w.endpoint)
			if verdict, out := run(t, c.Programs[progIn], later); verdict != passed || !bytes.Equal(out, later) {
				t.Errorf("a later fragment alone: verdict %d, packet %x", int32(verdict), out)
			}
			if verdict, out := run(t, c.Programs[progIn], first); verdict != passed || !bytes.Equal(out, wantFirst) {
				t.Errorf("the first: verdict %d, packet\n%x, want\n%x", int32(verdict), out, wantFirst)
			}
			if verdict, out := run(t, c.Programs[progIn], later); verdict != passed || !bytes.Equal(out, wantLater) {
				t.Errorf("the later one: verdict %d, packet\n%x, want\n%x", int32(verdict), out, wantLater)
			}
			mark(t, c, w.frontend.Addr())   // it is a ClusterIP
			later[14+[]int{5, 40 + 7}[i]]++ // another datagram
			if i == 0 {
				copy(later[24:], []byte{0, 0})
				s := ^sum(later[14:34])
				later[24], later[25] = byte(s>>8), byte(s)
			}
			if verdict, _ := run(t, c.Programs[progIn], later); verdict != shot {
				t.Errorf("a later fragment alone to a ClusterIP: verdict %d", int32(verdict))
			}
		})
	}
}

// TestErrors: an ICMP error that quotes a packet of a connection, in whatever
// length, is translated to the last byte, or passes as it came. As with
// netfilter it comes from where the connection's packets come from.
func TestErrors(t *testing.T) {
	c := programs(t)
	for _, w := range ways(false) {
		run(t, c.Programs[progIn], frameOf(ip(w.client.Addr(), w.frontend.Addr(), unix.IPPROTO_TCP, tcp(w.client, w.frontend, flagSYN, nil, nil))))
		router := map[string]netip.Addr{"IPv4": strangerAddr(), "IPv6": netip.MustParseAddr("2001:db8:99::1")}[w.name]
		// Inner TCP checksums stay as they are: so the wanted ones are made with it.
		quoted := func(dst netip.AddrPort, cut int) []byte {
			l4 := tcp(w.client, w.endpoint, flagACK, nil, somePayload)
			l4[2], l4[3] = byte(dst.Port()>>8), byte(dst.Port())
			b := ip(w.client.Addr(), dst.Addr(), unix.IPPROTO_TCP, l4)
			return b[:min(len(b), cut)]
		}
		header := len(quoted(w.endpoint, 2000)) - 20 - len(somePayload)
		for _, tc := range []struct {
			name       string
			cut        int // bytes quoted
			padding    int // bytes of the frame behind the error
			translated bool
		}{
			{"all of the packet", 2000, 0, true},
			{"its headers", header + 20, 0, true},
			{"8 bytes of TCP, the least", header + 8, 0, true},
			{"4 bytes of TCP: the ports", header + 4, 0, true},
			{"3 bytes of TCP", header + 3, 0, false},
			{"no byte of TCP", header, 0, false},
			{"half a header", header / 2, 0, false},
			{"nothing", 0, 0, false},
			{"half a header, the rest as the frame's padding", header / 2, 60, false},
			{"no byte of TCP, the rest as the frame's padding", header, 20, false},
		} {
			t.Run(w.name+" "+tc.name, func(t *testing.T) {
				build := func(from netip.Addr, dst netip.AddrPort) []byte {
					b, all := frameOf(tooBig(from, w.client.Addr(), quoted(dst, tc.cut))), quoted(dst, 2000)
					return append(b, append(all, make([]byte, tc.padding)...)[min(tc.cut, len(all)):][:tc.padding]...)
				}
				in, want := build(router, w.endpoint), build(router, w.endpoint)
				if tc.translated {
					want = build(w.frontend.Addr(), w.frontend)
				}
				verdict, out := run(t, c.Programs[progOut], in)
				if verdict != passed || !bytes.Equal(out, want) {
					t.Errorf("verdict %d, packet\n%x, want\n%x", int32(verdict), out, want)
				}
			})
		}
	}
}

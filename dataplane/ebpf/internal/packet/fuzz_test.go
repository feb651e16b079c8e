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

// redirected is TC_ACT_REDIRECT.
const redirected = 7

// seeds are the odd packets, as frames and bare, and errors about some.
func seeds() [][]byte {
	var all [][]byte
	for i, w := range ways(false) {
		for _, o := range slices.Concat([][]odd{odd4(), odd6()}[i], oddBoth()) {
			in := o.packet(w.client, w.frontend)
			all = append(all, frameOf(in), frameOf(o.packet(w.endpoint, w.client)), frameOf(tooBig(w.endpoint.Addr(), w.client.Addr(), o.packet(w.client, w.endpoint))))
		}
	}
	for i, w := range ways(true) {
		for _, o := range slices.Concat([][]odd{odd4(), odd6()}[i], oddBoth()) {
			all = append(all, o.packet(w.client, w.frontend))
		}
	}
	return slices.DeleteFunc(all, func(b []byte) bool { return len(b) < leastFrame })
}

// leastFrame is the shortest frame that the kernel runs every program on.
const leastFrame = 14 + 40

// FuzzPackets: whatever a packet is, no program makes of it one that goes
// anywhere else than to its own destination or a known one, none that has a
// wrong checksum where it had right ones, and none whose payload changed.
// go test -fuzz FuzzPackets ./dataplane/ebpf/internal/packet
func FuzzPackets(f *testing.F) {
	c := programs(f)
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < leastFrame || len(in) > 2000 {
			return
		}
		for _, name := range []string{progIn, progOut, progInBare, progOutBare} {
			verdict, out := run(t, c.Programs[name], in)
			if text := wrong(in, verdict, out, name == progInBare || name == progOutBare); text != "" {
				t.Errorf("%s: %s: verdict %d, packet\n%x, was\n%x", name, text, int32(verdict), out, in)
			}
		}
	})
}

// wrong says what is wrong with what became of a packet; "": nothing.
func wrong(in []byte, verdict uint32, out []byte, bare bool) string {
	if verdict == shot || bytes.Equal(in, out) {
		return ""
	}
	if verdict != passed && verdict != redirected {
		return "a strange verdict"
	}
	if bare {
		in, out = frameOf(in), frameOf(out)
	}
	was, ok := look(in)
	now, stillOK := look(out)
	switch {
	case !ok:
		return "it was no packet, and changed"
	case !stillOK:
		return "it was a packet, and is none"
	case len(in) != len(out) || was.l4 != now.l4 || was.end != now.end || was.protocol != now.protocol:
		return "another shape"
	case !slices.Contains(known(was.dst), now.dst):
		return "to an address that nobody asked for"
	case !slices.Contains(known(was.src), now.src):
		return "from an address that is not its own"
	case summed(in) && !summed(out):
		return "a checksum that was right is wrong"
	}
	// Of a whole packet ports and checksum are all that may change behind the
	// network header; of an error what it quotes may, too.
	same := map[byte]int{unix.IPPROTO_TCP: 18, unix.IPPROTO_UDP: 8, unix.IPPROTO_SCTP: 12, unix.IPPROTO_ICMP: 8 + 60 + 4, unix.IPPROTO_ICMPV6: 8 + 2000}[was.protocol]
	if from := min(was.l4+same, len(in)); !bytes.Equal(in[from:], out[from:]) {
		return "another payload"
	}
	return ""
}

// known are the addresses that a packet's address may become.
func known(own netip.Addr) []netip.Addr {
	all := []netip.Addr{own}
	for _, w := range slices.Concat(ways(false), ways(true)) {
		all = append(all, w.client.Addr(), w.frontend.Addr(), w.endpoint.Addr())
	}
	return all
}

// TestReject: an odd packet that opens a connection to a port that a ClusterIP
// does not have is answered by an error about it, or by a reset; by silence
// where its headers are too long to be quoted.
func TestReject(t *testing.T) {
	c := programs(t)
	for i, w := range ways(false) {
		other := map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.77"), "IPv6": netip.MustParseAddr("2001:db8:1::77")}[w.name]
		mark(t, c, other)
		for _, o := range slices.Concat([][]odd{odd4(), odd6()}[i], oddBoth()) {
			t.Run(w.name+" "+o.name, func(t *testing.T) {
				in := frameOf(o.packet(w.client, netip.AddrPortFrom(other, frontendPort)))
				verdict, out := run(t, c.Programs[progIn], in)
				if !o.translated {
					if verdict != passed || !bytes.Equal(in, out) {
						t.Errorf("verdict %d, packet\n%x, was\n%x", int32(verdict), out, in)
					}
					return
				}
				if text := wrongReject(in, verdict, out); text != "" {
					t.Errorf("%s: verdict %d, packet\n%x, was\n%x", text, int32(verdict), out, in)
				}
			})
		}
	}
}

// mark makes an address a ClusterIP without any port.
func mark(t *testing.T, c *ebpf.Collection, a netip.Addr) {
	t.Helper()
	key := a.As16()
	if err := c.Maps["frontends"].Put(append(key[:], 0, 0, 0, 0), make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
}

// wrongReject says what is wrong with the answer to a rejected packet.
func wrongReject(in []byte, verdict uint32, out []byte) string {
	was, _ := look(in)
	if verdict == shot && was.l4-was.l3+20 > 128 {
		return ""
	}
	now, ok := look(out)
	switch {
	case verdict != redirected:
		return "no answer"
	case !ok || !summed(out):
		return "no packet that a host takes"
	case now.src != was.dst || now.dst != was.src || !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]):
		return "not back to the sender"
	case now.protocol == unix.IPPROTO_TCP:
		if out[now.l4+13] != flagRST|flagACK {
			return "no reset"
		}
	case now.protocol != unix.IPPROTO_ICMP && now.protocol != unix.IPPROTO_ICMPV6:
		return fmt.Sprintf("protocol %d", now.protocol)
	case !bytes.HasPrefix(in[was.l3:], out[now.l4+8:now.end]):
		return "another packet quoted"
	}
	return ""
}

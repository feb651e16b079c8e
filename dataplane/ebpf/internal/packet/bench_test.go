package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// strangerAddr is an address that nothing is known of.
func strangerAddr() netip.Addr { return netip.MustParseAddr("192.88.99.1") }

// node4 is the address of the node in these benchmarks.
var node4 = netip.MustParseAddr("203.0.113.1")

// BenchmarkPrograms times one packet in a program, by the kernel's own clock.
// What is done to each connection or packet once only (what was translated as it
// came in is not again) is timed packet by packet, and has the clock's own 50 to
// 100 ns on top. Where the same packet is run again and
// again its entry makes of it what it was: all of the work is done each time.
func BenchmarkPrograms(b *testing.B) {
	segment := func(src, dst netip.Addr) []byte {
		from, to := netip.AddrPortFrom(src, port(src)), netip.AddrPortFrom(dst, port(dst))
		return frameOf(ip(src, dst, unix.IPPROTO_TCP, tcp(from, to, flagACK, nil, make([]byte, 100))))
	}
	syn := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_TCP)
	for _, bc := range []struct {
		name    string
		program string
		in      []byte
		entries []entry
		once    bool // in the life of a connection, or of a packet
	}{
		{"in, not to a Service, opening", progIn, frame(client4, strangerAddr(), clientPort, 53, unix.IPPROTO_TCP), nil, false},
		{"in, not to a Service, in mid-flow", progIn, segment(client4, strangerAddr()), nil, false},
		{"in, first packet", progIn, syn, nil, true},
		{"in, known connection", progIn, segment(client4, frontend4), []entry{{client4, frontend4, stageIn, connPrimary}}, true},
		{"in, answer to a masqueraded one", progIn, segment(endpoint4, node4), []entry{{endpoint4, node4, stageIn, 0}}, true},
		{"out, not of a Service, in mid-flow", progOut, segment(client4, strangerAddr()), nil, false},
		{"out, answer", progOut, segment(endpoint4, client4), []entry{{endpoint4, client4, stageOut, 0}}, false},
		{"out, first packet to be masqueraded", progOut, segment(client4, endpoint4), []entry{{client4, endpoint4, stageOut, connMasquerade}}, true},
		{"out, masqueraded connection", progOut, segment(client4, endpoint4), []entry{{client4, endpoint4, stageOut, 0}}, false},
	} {
		b.Run(bc.name, func(b *testing.B) {
			c := programs(b)
			d := device{V4: node4.As16()}
			if err := c.Maps[mapDevices].Put(uint32(1), &d); err != nil { // lo, which test packets are of
				b.Fatal(err)
			}
			enter := func() {
				for _, e := range bc.entries {
					e.put(b, c.Maps[mapConnections])
				}
			}
			enter()
			if !bc.once {
				_, took, err := c.Programs[bc.program].Benchmark(bc.in, b.N, b.ResetTimer)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
				return
			}
			var sum time.Duration
			for range b.N {
				emptyConnections(b, c)
				enter()
				_, took, err := c.Programs[bc.program].Benchmark(bc.in, 1, nil)
				if err != nil {
					b.Fatal(err)
				}
				sum += took
			}
			b.ReportMetric(float64(sum.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}

// entry is one of the connection table; it makes of a packet what it was.
type entry struct {
	src, dst netip.Addr
	stage    uint8
	flags    uint8
}

// port is the port that goes with an address in these benchmarks.
func port(a netip.Addr) uint16 {
	switch a {
	case frontend4:
		return frontendPort
	case endpoint4:
		return endpointPort
	}
	return clientPort
}

func (e entry) put(tb testing.TB, connections *ebpf.Map) {
	tb.Helper()
	wire := func(a netip.Addr) (p [2]byte) {
		binary.BigEndian.PutUint16(p[:], port(a))
		return p
	}
	key := tuple{Src: e.src.As16(), Dst: e.dst.As16(), Sport: wire(e.src), Dport: wire(e.dst), Protocol: unix.IPPROTO_TCP, Stage: e.stage}
	value := conn{Src: key.Src, Dst: key.Dst, Sport: key.Sport, Dport: key.Dport, Flags: e.flags, Seen: uint64(monotonic())}
	if err := connections.Put(&key, &value); err != nil {
		tb.Fatal(err)
	}
}

package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// The programs on packets made by hand, run by the kernel (BPF_PROG_TEST_RUN):
// what becomes of each, to the last byte.

// passed is TC_ACT_UNSPEC: on to the stack.
const passed = 0xffffffff

// shot is TC_ACT_SHOT: dropped.
const shot = 2

// The Service of these tests: port 80 at each of frontends is served by port
// 8080 at the endpoint of its family.
var (
	client4, frontend4, endpoint4 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.9")
	client6, frontend6, endpoint6 = netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::9")
)

const clientPort, frontendPort, endpointPort = 40000, 80, 8080

// programs loads the packet programs with that Service in their maps.
func programs(tb testing.TB) *ebpf.Collection {
	tb.Helper()
	return programsOf(tb, 4096)
}

// programsOf has a connection table of that size. The verifier takes long, so
// all tests have the same programs, one after the other, on maps made empty.
func programsOf(tb testing.TB, connections uint32) *ebpf.Collection {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			tb.Fatal("REQUIRE_KERNEL is set: loading programs needs root")
		}
		tb.Skip("loading programs needs root")
	}
	c := loaded[connections]
	if c == nil {
		c = load(tb, connections)
		loaded[connections] = c
	}
	for name, m := range c.Maps {
		if !strings.HasPrefix(name, ".") {
			empty(tb, m)
		}
	}
	id := uint32(1)
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		serve(tb, c, id, frontend4, endpoint4, protocol)
		serve(tb, c, id+1, frontend6, endpoint6, protocol)
		id += 2
	}
	setBegin(tb, c, true)
	return c
}

// loaded are the programs, by the size of their connection table.
var loaded = map[uint32]*ebpf.Collection{}

func load(tb testing.TB, connections uint32) *ebpf.Collection {
	tb.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		tb.Fatal(err)
	}
	spec, err := Spec()
	if err != nil {
		tb.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.MaxEntries = min(m.MaxEntries, 4096)
	}
	spec.Maps[mapConnections].MaxEntries = connections
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// empty makes a map as it was when it was made.
func empty(tb testing.TB, m *ebpf.Map) {
	tb.Helper()
	switch m.Type() {
	case ebpf.Array:
		if err := m.Put(uint32(0), make([]byte, m.ValueSize())); err != nil {
			tb.Fatal(err)
		}
	case ebpf.PerCPUArray:
		zeros := make([][]byte, ebpf.MustPossibleCPU())
		for i := range zeros {
			zeros[i] = make([]byte, m.ValueSize())
		}
		for i := range m.MaxEntries() {
			if err := m.Put(i, zeros); err != nil {
				tb.Fatal(err)
			}
		}
	case ebpf.Hash, ebpf.LRUHash:
		room := func(size uint32) any { // for as many elements as there can be
			all := int(m.MaxEntries())
			return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), all, all).Interface()
		}
		keys, values := room(m.KeySize()), room(m.ValueSize())
		if _, err := m.BatchLookupAndDelete(new(ebpf.MapBatchCursor), keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			tb.Fatal(err)
		}
	case ebpf.LPMTrie: // no test has any
	default:
		tb.Fatalf("%s: how to empty it is not known", m)
	}
}

// setBegin tells whether packets may begin connections (PACKETS_BEGIN).
func setBegin(tb testing.TB, c *ebpf.Collection, may bool) {
	tb.Helper()
	flags := map[bool]uint64{true: 4}[may] // 32 bits, and as many of padding
	if err := c.Maps["settings"].Put(uint32(0), flags); err != nil {
		tb.Fatalf("writing settings: %v", err)
	}
}

// serve writes a Service with one endpoint, as bpf/types.h has it.
func serve(tb testing.TB, c *ebpf.Collection, id uint32, frontend, endpoint netip.Addr, protocol byte) {
	tb.Helper()
	order := binary.NativeEndian
	f, e := frontend.As16(), endpoint.As16()
	key := binary.BigEndian.AppendUint16(f[:], frontendPort)
	key = append(key, protocol, 0)
	check := uint32(protocol)<<16 | uint32(order.Uint16(key[16:]))
	for i := 0; i < 16; i += 4 {
		check ^= order.Uint32(key[i:])
	}
	value := order.AppendUint32(order.AppendUint32(nil, check), id)
	value = append(order.AppendUint32(value, 0), 0, 0, 0, 0)
	service := make([]byte, 88)
	order.PutUint32(service, id)
	order.PutUint32(service[4:], 1)
	order.PutUint32(service[28:], 1) // pools[0] has one slot
	slotKey := order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, id), 1), 0)
	slot := append(order.AppendUint32(order.AppendUint32(nil, id), 1), e[:]...)
	slot = append(binary.BigEndian.AppendUint16(slot, endpointPort), 0, 0)
	for name, entry := range map[string][2][]byte{
		"frontends": {key, value}, "services": {order.AppendUint32(nil, id), service}, "slots": {slotKey, slot},
	} {
		if err := c.Maps[name].Put(entry[0], entry[1]); err != nil {
			tb.Fatalf("writing %s: %v", name, err)
		}
	}
}

// frame is a packet that opens a connection, with right checksums.
func frame(src, dst netip.Addr, sport, dport uint16, protocol byte) []byte {
	l4 := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	payload := []byte("payload of any length")
	switch protocol {
	case unix.IPPROTO_TCP:
		l4 = append(l4, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
	case unix.IPPROTO_UDP:
		l4 = append(binary.BigEndian.AppendUint16(l4, uint16(8+len(payload))), 0, 0)
		l4 = append(l4, payload...)
	case unix.IPPROTO_SCTP:
		l4 = append(l4, make([]byte, 8)...)
		l4 = append(l4, 1, 0, 0, 20)
		l4 = append(l4, make([]byte, 16)...)
	}
	var b []byte
	b = append(b, make([]byte, 12)...)
	if src.Is4() {
		b = append(b, 8, 0, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+len(l4)))
		b = append(b, 0, 1, 0, 0, 64, protocol, 0, 0)
	} else {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(l4)))
		b = append(b, protocol, 64)
	}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), l4...)
	checksums(b, protocol)
	return b
}

// checksums fills in all checksums of a frame without options.
func checksums(b []byte, protocol byte) {
	l4 := 14 + 40
	addresses := b[22:54]
	if b[12] == 8 {
		l4, addresses = 14+20, b[26:34]
		copy(b[24:], []byte{0, 0})
		binary.BigEndian.PutUint16(b[24:], ^sum(b[14:34]))
	}
	at := map[byte]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_SCTP: 8}[protocol]
	if protocol == unix.IPPROTO_SCTP {
		clear(b[l4+at : l4+at+4])
		binary.LittleEndian.PutUint32(b[l4+at:], crc32.Checksum(b[l4:], crc32.MakeTable(crc32.Castagnoli)))
		return
	}
	clear(b[l4+at : l4+at+2])
	pseudo := append(bytes.Clone(addresses), 0, protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)-l4))
	s := ^sum(append(pseudo, b[l4:]...))
	if s == 0 {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(b[l4+at:], s)
}

// sum is the Internet checksum's sum.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func run(tb testing.TB, p *ebpf.Program, in []byte) (uint32, []byte) {
	tb.Helper()
	verdict, out, err := p.Test(in)
	if err != nil {
		tb.Fatal(err)
	}
	return verdict, out
}

// TestTranslate: a packet to the frontend becomes one to the endpoint at
// ingress, and the answer one of the frontend at egress; all checksums right.
func TestTranslate(t *testing.T) {
	c := programs(t)
	for _, f := range []struct {
		name                       string
		client, frontend, endpoint netip.Addr
	}{{"IPv4", client4, frontend4, endpoint4}, {"IPv6", client6, frontend6, endpoint6}} {
		for name, protocol := range map[string]byte{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP} {
			t.Run(f.name+" "+name, func(t *testing.T) {
				verdict, out := run(t, c.Programs[progIn], frame(f.client, f.frontend, clientPort, frontendPort, protocol))
				if want := frame(f.client, f.endpoint, clientPort, endpointPort, protocol); verdict != passed || !bytes.Equal(out, want) {
					t.Errorf("at ingress: verdict %d, packet\n%x, want\n%x", int32(verdict), out, want)
				}
				verdict, out = run(t, c.Programs[progOut], frame(f.endpoint, f.client, endpointPort, clientPort, protocol))
				if want := frame(f.frontend, f.client, frontendPort, clientPort, protocol); verdict != passed || !bytes.Equal(out, want) {
					t.Errorf("the answer at egress: verdict %d, packet\n%x, want\n%x", int32(verdict), out, want)
				}
			})
		}
	}
}

// TestHostile: what is bent or cut short goes to the stack as it came, and
// opens no connection.
func TestHostile(t *testing.T) {
	c := programs(t)
	tcp4, tcp6 := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_TCP), frame(client6, frontend6, clientPort, frontendPort, unix.IPPROTO_TCP)
	udp4 := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_UDP)
	change := func(b []byte, at int, value ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], value)
		return b
	}
	for _, tc := range []struct {
		name string
		in   []byte
	}{
		{"an IPv4 header that claims 16 bytes", change(tcp4, 14, 0x44)},
		{"an IPv4 header that claims options up to the packet's end and past it", change(tcp4, 14, 0x4f)},
		{"IP version 5", change(tcp4, 14, 0x55)},
		{"a total length larger than the packet", change(tcp4, 16, 0xff, 0xff)},
		{"a total length that cuts the TCP header", change(tcp4, 16, 0, 30)},
		{"a total length smaller than the header", change(tcp4, 16, 0, 10)},
		{"a TCP data offset past the end", change(tcp4, 14+20+12, 0xf0)},
		{"a TCP data offset below its header", change(tcp4, 14+20+12, 0x40)},
		{"a UDP length past the end", change(udp4, 14+20+4, 0xff, 0)},
		{"a UDP length below its header", change(udp4, 14+20+4, 0, 4)},
		{"a TCP header cut short", tcp4[:14+20+12]},
		{"an IPv6 payload length past the end", change(tcp6, 18, 0xff, 0xff)},
		{"a hop-by-hop header that claims 2,048 bytes", change(tcp6, 20, 0, 64)[:14+40+20]},
		{"TCP in mid-flow of no known connection", change(tcp4, 14+20+13, 0x10)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := tc.in
			if tc.name == "a hop-by-hop header that claims 2,048 bytes" {
				in = change(in, 14+40, 6, 255)
			}
			verdict, out := run(t, c.Programs[progIn], in)
			if verdict != passed || !bytes.Equal(in, out) {
				t.Errorf("verdict %d, packet\n%x, was\n%x", int32(verdict), out, in)
			}
			var key tuple
			var value conn
			if c.Maps[mapConnections].Iterate().Next(&key, &value) {
				t.Fatalf("it opened a connection: %+v", key)
			}
		})
	}
}

// TestNothingBeginsBeforeAllDevicesHaveTheirPrograms: answers could come in by
// a device that has none yet. What began already goes on.
func TestNothingBeginsBeforeAllDevicesHaveTheirPrograms(t *testing.T) {
	c := programs(t)
	in := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_UDP)
	setBegin(t, c, false)
	if verdict, out := run(t, c.Programs[progIn], in); verdict != passed || !bytes.Equal(in, out) {
		t.Errorf("before: verdict %d, packet\n%x, was\n%x", int32(verdict), out, in)
	}
	for _, may := range []bool{true, false} {
		setBegin(t, c, may)
		if _, out := run(t, c.Programs[progIn], in); bytes.Equal(in, out) {
			t.Errorf("may begin: %t: the packet was not translated", may)
		}
	}
}

// TestNoise: random changes of packets never get one forwarded with a
// destination that is neither its own nor an endpoint.
func TestNoise(t *testing.T) {
	c := programs(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		in := frame(client4, frontend4, clientPort, frontendPort, unix.IPPROTO_TCP)
		for range 1 + random.IntN(4) {
			in[14+random.IntN(len(in)-14)] = byte(random.Uint32())
		}
		verdict, out := run(t, c.Programs[progIn], in)
		if verdict == passed && !bytes.Equal(out[30:34], in[30:34]) && !bytes.Equal(out[30:34], endpoint4.AsSlice()) {
			t.Fatalf("packet %x became %x", in, out)
		}
	}
}

// TestTakenPorts: where every source port towards an endpoint is taken, a new
// connection gets that of one which has ended, and of no other.
func TestTakenPorts(t *testing.T) {
	other := netip.MustParseAddr("198.51.100.2") // a second frontend of the endpoint
	for _, tc := range []struct {
		name string
		ends [2]uint8 // of the client's packets and the answers in every connection
		want bool     // the new one gets a port
	}{
		{"all stand", [2]uint8{0, 0}, false},
		{"all are half closed", [2]uint8{connFIN, 0}, false},
		{"all have ended", [2]uint8{connFIN, connFIN}, true},
		{"all were reset", [2]uint8{0, connReset}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := programsOf(t, 1<<18)
			serve(t, c, 100, other, endpoint4, unix.IPPROTO_TCP)
			takeAllPorts(t, c.Maps[mapConnections], tc.ends)
			verdict, out := run(t, c.Programs[progIn], frame(client4, other, clientPort, frontendPort, unix.IPPROTO_TCP))
			if got := verdict == passed && bytes.Equal(out[30:34], endpoint4.AsSlice()); got != tc.want {
				t.Errorf("verdict %d, packet %x; forwarded %t, want %t", int32(verdict), out, got, tc.want)
			}
			var perCPU []uint64
			if err := c.Maps["stats"].Lookup(uint32(statPortsTaken), &perCPU); err != nil {
				t.Fatal(err)
			}
			refused := uint64(0)
			for _, n := range perCPU {
				refused += n
			}
			if (refused == 0) != tc.want {
				t.Errorf("%d connections counted as refused", refused)
			}
		})
	}
}

// statPortsTaken is STAT_PACKET_PORTS_TAKEN of bpf/stats.h.
const statPortsTaken = 17

// takeAllPorts enters a connection of the client to the frontend from each of
// its ports.
func takeAllPorts(t *testing.T, connections *ebpf.Map, ends [2]uint8) {
	t.Helper()
	port := func(n int) (b [2]byte) {
		binary.BigEndian.PutUint16(b[:], uint16(n))
		return b
	}
	var keys []tuple
	var values []conn
	for n := 1024; n <= 65535; n++ {
		first := tuple{Src: client4.As16(), Dst: frontend4.As16(), Sport: port(n), Dport: port(frontendPort), Protocol: unix.IPPROTO_TCP, Stage: stageIn}
		c := conn{Src: client4.As16(), Dst: endpoint4.As16(), Sport: port(n), Dport: port(endpointPort), Flags: connPrimary, Ends: ends[0]}
		back := first.reversed(stageOut)
		answers := conn{Src: back.Src, Dst: back.Dst, Sport: back.Sport, Dport: back.Dport, Ends: ends[1]}
		keys, values = append(keys, first, first.becomes(c, 0).reversed(stageOut)), append(values, c, answers)
	}
	if _, err := connections.BatchUpdate(keys, values, nil); err != nil {
		t.Fatal(err)
	}
}

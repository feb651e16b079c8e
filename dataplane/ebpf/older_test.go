package ebpf

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// olderPins is what an agent of schema v1 pinned, as far as this one cares: a hook at
// connect(), a program on lo, and maps.
type olderPins struct {
	dir         string
	connections *ebpf.Map
	frontends   *ebpf.Map
	peers       *ebpf.Map
	hook        link.ID
}

// pinOlder makes it.
func pinOlder(t *testing.T, o Options) olderPins {
	t.Helper()
	p := olderPins{dir: filepath.Join(o.PinDir, "v1")}
	for _, d := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pinned := func(name string, spec *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(spec)
		if err == nil {
			err = m.Pin(filepath.Join(p.dir, "maps", name))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	p.connections = pinned("connections", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 64, MaxEntries: 16})
	p.frontends = pinned("frontends", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 16, MaxEntries: 16})
	sock, err := programs.LoadSock()
	if err != nil {
		t.Fatal(err)
	}
	p.peers = pinned("peers", sock.Maps[programs.SockMapPeers])
	if err := p.frontends.Put(make([]byte, 20), make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	hook := program(t, ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, 1)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: o.CgroupRoot, Attach: ebpf.AttachCGroupInet4Connect, Program: hook})
	if err != nil {
		t.Fatal(err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Pin(filepath.Join(p.dir, "links", "sock_connect4")), l.Close()); err != nil {
		t.Fatal(err)
	}
	p.hook = info.ID
	packets, err := link.AttachTCX(link.TCXOptions{Interface: 1, Program: program(t, ebpf.SchedCLS, ebpf.AttachTCXIngress, -1), Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return p // before Linux 6.6
	}
	if err = errors.Join(err, packets.Pin(filepath.Join(p.dir, "links", "packet-1-in")), packets.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

func program(t *testing.T, kind ebpf.ProgramType, at ebpf.AttachType, verdict int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, AttachType: at, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// connection enters a connection in v1's table that had a packet a while ago.
func (p olderPins) connection(t *testing.T, ago time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	if now.Nano() <= int64(ago) { // the machine has not run for so long: it ended
		if err := p.connections.Delete(make([]byte, 40)); err != nil {
			t.Fatal(err)
		}
		return
	}
	value := make([]byte, 64)
	binary.NativeEndian.PutUint64(value[programs.OlderSeen:], uint64(now.Nano()-int64(ago)))
	if err := p.connections.Put(make([]byte, 40), value); err != nil {
		t.Fatal(err)
	}
}

func hooksAt(t *testing.T, o Options, at ebpf.AttachType) int {
	t.Helper()
	dir, err := os.Open(o.CgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: at})
	if err != nil {
		t.Fatal(err)
	}
	return len(found.Programs)
}

// An agent of a newer schema takes the hooks over in place and what sockets are
// connected to along, lets the older packet programs finish, and removes them.
func TestOlderSchemaIsTakenOver(t *testing.T) {
	o := testOptions(t)
	old := pinOlder(t, o)
	old.connection(t, time.Second)
	b := openBackend(t, o)
	if n := len(keysIn(t, old.frontends)); n != 1 {
		t.Errorf("Open left %d frontends of the older schema, want 1", n)
	}
	want := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"))
	mustSync(t, b, nil, want)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	if n := hooksAt(t, o, ebpf.AttachCGroupInet4Connect); n != 1 {
		t.Errorf("%d programs are at connect(), want one", n)
	}
	l, err := link.LoadPinnedLink(filepath.Join(b.sockets.programs.Dirs.Links, "sock_connect4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Close()); err != nil || info.ID != old.hook {
		t.Errorf("the hook is link %d (%v); want that of the older schema, %d", info.ID, err, old.hook)
	}
	have, err := b.sockets.programs.Maps[programs.SockMapPeers].Info()
	if err != nil {
		t.Fatal(err)
	}
	before, err := old.peers.Info()
	if err != nil {
		t.Fatal(err)
	}
	haveID, _ := have.ID()
	if id, _ := before.ID(); id != haveID {
		t.Error("what sockets are connected to is forgotten")
	}
	time.Sleep(programs.OlderLook / 2)
	if n := len(keysIn(t, old.frontends)); n != 0 {
		t.Errorf("the older programs still begin connections: %d frontends", n)
	}
	if _, err := os.Stat(old.dir); err != nil || b.Sockets().Draining == "" {
		t.Errorf("the older programs are gone while they have a connection: %v, %q", err, b.Sockets().Draining)
	}
	old.connection(t, programs.OlderIdle+time.Second)
	for deadline := time.Now().Add(3 * programs.OlderLook); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(old.dir); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the older programs are still there")
		}
	}
	if found, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}); err == nil && len(found.Programs) > 0 {
		t.Errorf("%d programs are on lo", len(found.Programs))
	}
	checkHolds(t, b, want)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
}

// Cleanup removes every schema, and the filters of kernels without tcx; what is
// another program's stays.
func TestCleanupRemovesEverySchema(t *testing.T) {
	o := testOptions(t)
	pinOlder(t, o)
	lo, err := netlink.LinkByIndex(1)
	if err != nil {
		t.Fatal(err)
	}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: 1, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(clsact); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.QdiscDel(clsact) })
	prog := program(t, ebpf.SchedCLS, ebpf.AttachNone, -1)
	for i, name := range []string{"switchyard_in", "another"} {
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: 1, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: uint16(i + 1)},
			Fd:          prog.FD(), Name: name, DirectAction: true,
		}
		if err := netlink.FilterAdd(filter); err != nil {
			t.Fatal(err)
		}
	}
	b := openBackend(t, o)
	mustSync(t, b, nil, snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := testDriver(o).Cleanup(t.Context(), testConfig()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(o.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", o.PinDir, err)
	}
	for _, h := range programs.Hooks() {
		if n := hooksAt(t, o, h.At); n != 0 {
			t.Errorf("%d programs are still at %s", n, h.At)
		}
	}
	filters, err := netlink.FilterList(lo, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		t.Fatal(err)
	}
	if len(filters) != 1 || filters[0].(*netlink.BpfFilter).Name != "another" {
		t.Errorf("the filters on lo are %v; want the other program's alone", filters)
	}
}

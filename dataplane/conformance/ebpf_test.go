package conformance

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	bpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The eBPF column. What the socket maps hold is read out of the pinned maps here
// again, by the layouts of bpf/types.h, so that the backend does not vouch for
// itself.

// ebpfColumn is sockets on top of another column's backend.
func ebpfColumn(base column) column {
	c := base
	c.name, c.backend, c.base, c.sockets = "ebpf", "ebpf", base.name, true
	c.driver = func(at site) dataplane.Driver {
		under := base
		if at.Base != "" {
			under, _ = columnNamed(at.Base)
		}
		return ebpf.Accelerate(c.name, socketOptions(at), under.driver(at))
	}
	c.state = func(r *run, n *netlab.Node) []string {
		lines := slices.Concat(serviceMaps(r, n), nodeMaps(r, n), attached(r, n))
		slices.Sort(lines)
		return append(lines, base.state(r, n)...)
	}
	c.damage = slices.Concat(ebpfDamage(), base.damage)
	c.remove = func(r *run, n *netlab.Node, random *rand.Rand) string {
		if random.IntN(2) == 0 {
			return removeEntry(r, n, random)
		}
		return base.remove(r, n, random)
	}
	c.foreign = append(slices.Clone(base.foreign), act{"another program on eth0 and in the cgroup", foreignPrograms})
	c.withoutForeign = func(r *run, n *netlab.Node) {
		base.withoutForeign(r, n)
		for _, l := range r.others {
			r.must(l.Close())
		}
		r.others = nil
	}
	c.left = func(at site) error {
		if _, err := os.Stat(at.PinDir); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s is still there", at.PinDir), err)
		}
		return nil
	}
	c.faults, c.tell = newCallFaults, counters
	return c
}

func socketOptions(at site) ebpf.Options {
	return ebpf.Options{SocketLB: cmp.Or(ebpf.SocketLB(at.SocketLB), ebpf.All), PinDir: at.PinDir, CgroupRoot: at.Cgroup, MaxEndpoints: at.MaxEndpoints}
}

// openPinned opens a pinned map; nil: it is not there.
func openPinned(r *run, n *netlab.Node, name string) *bpf.Map {
	r.Helper()
	m, err := bpf.LoadPinnedMap(filepath.Join(r.site(n).PinDir, "v2", "maps", name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	r.must(err)
	return m
}

// pinned is what a pinned map holds; nothing where it is not there.
func pinned(r *run, n *netlab.Node, name string) (keys, values [][]byte) {
	r.Helper()
	m := openPinned(r, n, name)
	if m == nil {
		return nil, nil
	}
	defer func() { _ = m.Close() }()
	var k, v []byte
	all := m.Iterate()
	for all.Next(&k, &v) {
		keys, values = append(keys, slices.Clone(k)), append(values, slices.Clone(v))
	}
	r.must(all.Err())
	return keys, values
}

// serviceMaps tells each frontend with its endpoints, without the numbers that
// the maps refer to each other by, and how many elements there are in all.
func serviceMaps(r *run, n *netlab.Node) []string {
	u32 := binary.NativeEndian.Uint32
	slots := map[[3]uint32]string{}
	keys, values := pinned(r, n, "slots")
	for i, k := range keys {
		v := values[i]
		slots[[3]uint32{u32(k), u32(k[4:]), u32(k[8:])}] = place(v[8:], v[24:])
	}
	services := map[uint32][]byte{}
	keys, values = pinned(r, n, "services")
	for i, k := range keys {
		services[u32(k)] = values[i]
	}
	poolOf := func(id uint32, index byte) string {
		const first, pools, most = 4, 16, 8 // in struct service
		svc := services[id]
		if svc == nil || index >= most {
			return "no Service"
		}
		at := pools + 8*int(index)
		from, count := u32(svc[at:]), u32(svc[at+4:])
		text := fmt.Sprintf("affinity %d s:", u32(svc[8:]))
		for slot := from; slot < from+count; slot++ {
			text += " " + slots[[3]uint32{id, u32(svc[first:]), slot}]
		}
		return text
	}
	var lines []string
	keys, values = pinned(r, n, "frontends")
	for i, k := range keys {
		v := values[i]
		id := u32(v[4:])
		lines = append(lines, fmt.Sprintf("frontend %d kind %d %s pool (%s) inside (%s)", k[18], k[19], place(k, k[16:]), poolOf(id, v[8]), poolOf(id, v[9])))
	}
	for name, size := range map[string]int{"slots": len(slots), "services": len(services)} {
		if size > 0 {
			lines = append(lines, fmt.Sprintf("%s %d", name, size))
		}
	}
	return lines
}

// nodeMaps tells what depends on the node alone.
func nodeMaps(r *run, n *netlab.Node) []string {
	var lines []string
	keys, _ := pinned(r, n, "node_addresses")
	for _, k := range keys {
		lines = append(lines, "node address "+address(k).String())
	}
	_, values := pinned(r, n, "settings")
	for _, v := range values {
		if flags := binary.NativeEndian.Uint32(v); flags != 0 {
			lines = append(lines, fmt.Sprintf("settings %d", flags))
		}
	}
	return lines
}

func address(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])).Unmap() }

func place(addr, port []byte) string {
	return netip.AddrPortFrom(address(addr), binary.BigEndian.Uint16(port)).String()
}

// attached are the programs in the node's cgroup and on its devices, by name.
func attached(r *run, n *netlab.Node) []string {
	r.Helper()
	var lines []string
	cgroup, err := os.Open(r.site(n).Cgroup)
	r.must(err)
	defer func() { _ = cgroup.Close() }()
	for _, at := range []bpf.AttachType{
		bpf.AttachCGroupInet4Bind, bpf.AttachCGroupInet6Bind, bpf.AttachCGroupInet4Connect, bpf.AttachCGroupInet6Connect, bpf.AttachCGroupUDP4Sendmsg, bpf.AttachCGroupUDP6Sendmsg,
		bpf.AttachCGroupUDP4Recvmsg, bpf.AttachCGroupUDP6Recvmsg, bpf.AttachCgroupInet4GetPeername, bpf.AttachCgroupInet6GetPeername,
	} {
		lines = append(lines, programsAt(r, "cgroup", int(cgroup.Fd()), at)...)
	}
	r.must(n.Do(func() error {
		devices, err := net.Interfaces()
		for _, d := range devices {
			for _, side := range tcSides() {
				lines = append(lines, programsOn(r, d, side)...)
			}
		}
		return err
	}))
	return lines
}

// tcSide is ingress or egress of a device.
type tcSide struct {
	tcx    bpf.AttachType
	clsact uint32 // parent of filters, on kernels without tcx (below 6.6)
}

func tcSides() []tcSide {
	return []tcSide{{bpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}, {bpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS}}
}

// programsOn are the programs on one side of a device.
func programsOn(r *run, d net.Interface, side tcSide) []string {
	r.Helper()
	if hasTCX() {
		return programsAt(r, d.Name, d.Index, side.tcx)
	}
	l, err := netlink.LinkByIndex(d.Index)
	r.must(err)
	filters, err := netlink.FilterList(l, side.clsact)
	r.must(err)
	var lines []string
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok {
			lines = append(lines, fmt.Sprintf("filter %s of %s at %s of %s", b.Name, b.Tag, side.tcx, d.Name))
		}
	}
	return lines
}

// hasTCX tells whether this kernel has tcx. No device has the number.
func hasTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1<<31 - 1, Attach: bpf.AttachTCXIngress})
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, bpf.ErrNotSupported)
}

// programs are the ids of those at connect() of node-a's cgroup.
func (r *run) programs() []uint32 {
	r.Helper()
	cgroup, err := os.Open(r.site(r.node("node-a")).Cgroup)
	r.must(err)
	defer func() { _ = cgroup.Close() }()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: bpf.AttachCGroupInet4Connect})
	r.must(err)
	var ids []uint32
	for _, p := range found.Programs {
		ids = append(ids, uint32(p.ID))
	}
	return ids
}

// entriesOf is how many entries a pinned map of node-a has room for.
func (r *run) entriesOf(name string) int {
	r.Helper()
	m := openPinned(r, r.node("node-a"), name)
	defer func() { _ = m.Close() }()
	return int(m.MaxEntries())
}

func programsAt(r *run, where string, target int, at bpf.AttachType) []string {
	r.Helper()
	found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: at})
	r.must(err)
	var lines []string
	for _, p := range found.Programs {
		prog, err := bpf.NewProgramFromID(p.ID)
		r.must(err)
		info, err := prog.Info()
		r.must(errors.Join(err, prog.Close()))
		lines = append(lines, fmt.Sprintf("program %s at %s of %s", info.Name, at, where))
	}
	return lines
}

// counters are those of bpf/stats.h that are not zero, for a case that failed.
func counters(r *run, n *netlab.Node) string {
	m := openPinned(r, n, "stats")
	if m == nil {
		return "nothing is pinned"
	}
	defer func() { _ = m.Close() }()
	header, err := os.ReadFile("../../bpf/stats.h")
	r.must(err)
	var text []string
	for i, name := range regexp.MustCompile(`(?m)^\tSTAT_(\w+),`).FindAllStringSubmatch(string(header), -1) {
		var each []uint64
		r.must(m.Lookup(uint32(i), &each))
		sum := uint64(0)
		for _, v := range each {
			sum += v
		}
		if sum > 0 {
			text = append(text, fmt.Sprintf("%s %d", strings.ToLower(name[1]), sum))
		}
	}
	return strings.Join(text, ", ")
}

// ebpfDamage is what may happen to maps, links and pins.
func ebpfDamage() []act {
	var acts []act
	for _, name := range []string{"frontends", "slots", "services", "node_addresses"} {
		acts = append(acts, act{"emptying the " + name + " map", func(r *run, n *netlab.Node) { emptyMap(r, n, name) }})
	}
	return append(acts,
		act{"detaching all programs", func(r *run, n *netlab.Node) { r.must(detachAll(r.site(n).PinDir)) }},
		act{"removing all pins of links", func(r *run, n *netlab.Node) {
			r.must(eachLink(r.site(n).PinDir, func(path string, _ link.Link) error { return os.Remove(path) }))
		}},
	)
}

func emptyMap(r *run, n *netlab.Node, name string) {
	keys, _ := pinned(r, n, name)
	m := openPinned(r, n, name)
	if m == nil {
		return
	}
	defer func() { _ = m.Close() }()
	for _, k := range keys {
		r.must(m.Delete(k))
	}
}

func detachAll(dir string) error {
	return eachLink(dir, func(_ string, l link.Link) error { return l.Detach() })
}

// eachLink calls f for each link pinned below a directory.
func eachLink(dir string, f func(string, link.Link) error) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "link") {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return err
		}
		return errors.Join(f(path, l), l.Close())
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// foreignPrograms attaches another program's programs where ours are too.
func foreignPrograms(r *run, n *netlab.Node) {
	r.Helper()
	pass := func(t bpf.ProgramType, at bpf.AttachType, verdict int32) *bpf.Program {
		p, err := bpf.NewProgram(&bpf.ProgramSpec{
			Name: "other_" + strings.ToLower(t.String()), Type: t, AttachType: at, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		})
		r.must(err)
		return p
	}
	next := pass(bpf.SchedCLS, bpf.AttachTCXIngress, -1) // TCX_NEXT
	defer func() { _ = next.Close() }()
	r.must(n.Do(func() error {
		d, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for _, side := range tcSides() {
			if !hasTCX() {
				if err := foreignFilter(d.Index, side, next); err != nil {
					return err
				}
				continue
			}
			l, err := link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: next, Attach: side.tcx})
			if err != nil {
				return err
			}
			r.others = append(r.others, l)
		}
		if !hasTCX() {
			r.others = append(r.others, closer(func() error { return n.Do(func() error { return withoutClsact(d.Index) }) }))
		}
		return nil
	}))
	allow := pass(bpf.CGroupSockAddr, bpf.AttachCGroupInet4Connect, 1)
	defer func() { _ = allow.Close() }()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: r.site(n).Cgroup, Attach: bpf.AttachCGroupInet4Connect, Program: allow})
	r.must(err)
	r.others = append(r.others, l)
}

// foreignFilter is another program's, before where ours stand.
func foreignFilter(ifindex int, side tcSide, prog *bpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: side.clsact, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          prog.FD(), Name: "other", DirectAction: true,
	})
}

// withoutClsact takes all filters from a device.
func withoutClsact(ifindex int) error {
	return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
}

// closer is a function that closes something.
type closer func() error

// Close implements io.Closer.
func (c closer) Close() error { return c() }

package packet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hooks puts programs on devices.
type hooks interface {
	// attach puts both programs on a device, in place of older ones of ours.
	attach(l netlink.Link) error
	// check is an error where a device has not both programs.
	check(l netlink.Link) error
	// forget drops what is kept of a device that is gone.
	forget(ifindex int) error
}

// side is one of a device's two hooks.
type side struct {
	name    string // in the names of pins and filters
	gress   string // in errors
	tcx     ebpf.AttachType
	tc      uint32 // parent of a clsact filter
	program string
	bare    string // the program for devices without a link layer header
}

func sides() []side {
	return []side{
		{"in", "ingress", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, progIn, progInBare},
		{"out", "egress", ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, progOut, progOutBare},
	}
}

// programSet is what hooks attach. Those for bare devices are loaded when the
// first such device is met: few nodes have one, and the verifier takes as long
// for them as for all others.
type programSet struct {
	usual    *ebpf.Collection
	loadBare func() (*ebpf.Collection, error)

	mu   sync.Mutex
	bare *ebpf.Collection // nil: not loaded yet; its maker closes it
}

// each calls do for each side of a device that has a program, and ends with the
// first error.
func (p *programSet) each(l netlink.Link, do func(side, *ebpf.Program) error) error {
	for _, s := range sides() {
		if s.name == "in" && isLoopback(l) {
			continue // what comes in from lo went out to it
		}
		prog, err := p.of(s, l)
		if err != nil {
			return err
		}
		if err := do(s, prog); err != nil {
			return err
		}
	}
	return nil
}

// of is the program for one side of a device.
func (p *programSet) of(s side, l netlink.Link) (*ebpf.Program, error) {
	if !isBare(l) {
		return p.usual.Programs[s.program], nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bare == nil {
		c, err := p.loadBare()
		if err != nil {
			return nil, fmt.Errorf("loading the programs for devices without a link layer header: %w", err)
		}
		p.bare = c
	}
	return p.bare.Programs[s.bare], nil
}

// isBare tells a device whose packets have no link layer header. The kernel
// tells them by the same types (dev_is_mac_header_xmit); rtnetlink knows no name
// for two of them.
func isBare(l netlink.Link) bool {
	switch l.Attrs().EncapType {
	case "ipip", "tunnel6", "sit", "gre", ip6gre, "void", "none", rawIP, "ppp":
		return true
	}
	return false
}

// ARPHRD_IP6GRE and ARPHRD_RAWIP.
const ip6gre, rawIP = "unknown823", "unknown519"

func isLoopback(l netlink.Link) bool { return l.Attrs().EncapType == "loopback" }

// linkDir is where the links of tcx are pinned.
const linkDir = "links"

// linkPrefix starts the name of each pin of this package.
const linkPrefix = "packet-"

// openHooks chooses tcx where the kernel has it (6.6), and clsact below.
func openHooks(cfg Config) (hooks, error) {
	progs := &programSet{usual: cfg.Collection, loadBare: cfg.LoadBare}
	err := probeTCX()
	if errors.Is(err, ebpf.ErrNotSupported) {
		cfg.Log.Info("programs are attached by clsact filters", "reason", "this kernel has no tcx links (Linux 6.6)")
		return &clsact{progs}, nil
	}
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cfg.PinDir, linkDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of links: %w", err)
	}
	return &tcx{programs: progs, dir: dir}, nil
}

// probeTCX tells whether the kernel has tcx. A device number that cannot exist
// makes the attempt harmless.
func probeTCX() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: passInstructions(), License: "Dual BSD/GPL"})
	if err != nil {
		return fmt.Errorf("loading a probe: %w", err)
	}
	defer func() { _ = prog.Close() }()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil // the kernel knew what was asked and had no such device
}

// tcx attaches by links, which are pinned so that they outlive the agent.
type tcx struct {
	programs *programSet
	dir      string
}

func (t *tcx) pin(ifindex int, s side) string {
	return filepath.Join(t.dir, fmt.Sprintf("%s%d-%s", linkPrefix, ifindex, s.name))
}

func (t *tcx) attach(l netlink.Link) error {
	return t.programs.each(l, func(s side, prog *ebpf.Program) error {
		if err := t.attachOne(t.pin(l.Attrs().Index, s), l.Attrs().Index, s, prog); err != nil {
			return fmt.Errorf("attaching to %s, %s: %w", l.Attrs().Name, s.gress, err)
		}
		return nil
	})
}

// attachOne replaces the program of a pinned link, or makes a new one.
func (t *tcx) attachOne(pin string, ifindex int, s side, prog *ebpf.Program) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer func() { _ = old.Close() }()
		if runs(old, prog, ifindex) {
			return nil
		}
		if err = old.Update(prog); err == nil {
			return nil
		}
		// Its device is gone, and another has its number now.
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unpinning the link of a device that is gone: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening a pinned link: %w", err)
	}
	fresh, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: s.tcx})
	if err != nil {
		return err
	}
	defer func() { _ = fresh.Close() }()
	if err := fresh.Pin(pin); err != nil {
		return fmt.Errorf("pinning a link: %w", err)
	}
	return nil
}

// runs tells whether a link runs this program on this device.
func runs(l link.Link, prog *ebpf.Program, ifindex int) bool {
	info, err := l.Info()
	if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != ifindex {
		return false
	}
	want, err := prog.Info()
	if err != nil {
		return false
	}
	id, ok := want.ID()
	return ok && info.Program == id
}

func (t *tcx) check(l netlink.Link) error {
	return t.programs.each(l, func(s side, prog *ebpf.Program) error {
		pinned, err := link.LoadPinnedLink(t.pin(l.Attrs().Index, s), nil)
		if err != nil {
			return fmt.Errorf("device %s has no program (%s): %w", l.Attrs().Name, s.name, err)
		}
		well := runs(pinned, prog, l.Attrs().Index)
		if err := pinned.Close(); err != nil {
			return fmt.Errorf("closing a link: %w", err)
		}
		if !well {
			return fmt.Errorf("device %s does not run our program (%s)", l.Attrs().Name, s.name)
		}
		return nil
	})
}

func (t *tcx) forget(ifindex int) error {
	var errs []error
	for _, s := range sides() {
		if err := os.Remove(t.pin(ifindex, s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpinning a link: %w", err))
		}
	}
	return errors.Join(errs...)
}

// clsact attaches by filters of the clsact qdisc, which outlive the agent by
// themselves and go with their device.
type clsact struct{ programs *programSet }

// filterName starts the name of each filter of ours, and marks it as such.
const filterName = "switchyard_"

// filterPriority is that of our filters; others' stay where they are.
const filterPriority = 0xc0

func (t *clsact) attach(l netlink.Link) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("adding the clsact qdisc to %s: %w", l.Attrs().Name, err)
	}
	return t.programs.each(l, func(s side, prog *ebpf.Program) error {
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: s.tc, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: filterPriority},
			Fd:          prog.FD(), Name: filterName + s.name, DirectAction: true,
		}
		if err := netlink.FilterReplace(filter); err != nil {
			return fmt.Errorf("attaching to %s: %w", l.Attrs().Name, err)
		}
		return nil
	})
}

func (t *clsact) check(l netlink.Link) error {
	return t.programs.each(l, func(s side, _ *ebpf.Program) error {
		filters, err := netlink.FilterList(l, s.tc)
		if err != nil {
			return fmt.Errorf("listing the filters of %s: %w", l.Attrs().Name, err)
		}
		if !slices.ContainsFunc(filters, isOurs) {
			return fmt.Errorf("device %s does not run our program (%s)", l.Attrs().Name, s.name)
		}
		return nil
	})
}

func isOurs(f netlink.Filter) bool {
	b, isBPF := f.(*netlink.BpfFilter)
	return isBPF && strings.HasPrefix(b.Name, filterName)
}

func (t *clsact) forget(int) error { return nil }

// Cleanup detaches from all devices of this network namespace and unpins all
// that Start pinned. It succeeds where there is nothing.
func Cleanup(pinDir string) error {
	return errors.Join(removeLinks(filepath.Join(pinDir, linkDir)), removeFilters())
}

// removeLinks removes our links.
func removeLinks(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing pinned links: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), linkPrefix) {
			continue
		}
		errs = append(errs, removeLink(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, fmt.Errorf("removing the folder of links: %w", err))
	}
	return errors.Join(errs...)
}

// removeLink detaches and unpins a link. To unpin alone would detach it a moment
// later, and not while a running agent holds it.
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		// A device that is gone has no program any more.
		if err = l.Detach(); errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOLINK) {
			err = nil
		}
		err = errors.Join(err, l.Close())
	}
	if rmErr := os.Remove(pin); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	if err != nil {
		return fmt.Errorf("removing link %s: %w", filepath.Base(pin), err)
	}
	return nil
}

// removeFilters removes our clsact filters. The qdisc goes where nothing else
// is on it.
func removeFilters() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		errs = append(errs, removeFiltersOf(l))
	}
	return errors.Join(errs...)
}

func removeFiltersOf(l netlink.Link) error {
	ours, others := 0, 0
	for _, s := range sides() {
		filters, err := netlink.FilterList(l, s.tc)
		if err != nil {
			return nil //nolint:nilerr // a device that just went, or a kernel without clsact: nothing of ours
		}
		for _, f := range filters {
			if !isOurs(f) {
				others++
				continue
			}
			ours++
			if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing a filter of %s: %w", l.Attrs().Name, err)
			}
		}
	}
	if ours == 0 || others > 0 {
		return nil
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("removing the clsact qdisc of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// pinnedDevices are the numbers of devices that links are pinned for.
func pinnedDevices(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing pinned links: %w", err)
	}
	var numbers []int
	for _, e := range entries {
		number, _, _ := strings.Cut(strings.TrimPrefix(e.Name(), linkPrefix), "-")
		if n, err := strconv.Atoi(number); err == nil && strings.HasPrefix(e.Name(), linkPrefix) {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

package programs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Schema v1 translated packets by itself, with a table of connections. Its
// programs take no new connection once this agent serves, and go when those that
// they have are over.
const (
	OlderLook = 5 * time.Second // how often its connections are counted
	OlderIdle = 5 * time.Minute // a connection without a packet for so long is over
	OlderSeen = 56              // where an element of its connections map has the time of its last packet

	olderMost = 15 * time.Minute // how long connections may go on
)

// older is what agents of other schemas left.
type older struct {
	schemas []string // directories
	log     *slog.Logger

	left atomic.Int64 // connections that v1's programs wait for
	stop chan struct{}
	done sync.WaitGroup
}

// findOlder looks for it.
func findOlder(d Dirs, pinDir string, log *slog.Logger) (*older, error) {
	all, err := SchemasIn(pinDir)
	if err != nil {
		return nil, err
	}
	o := &older{log: log, stop: make(chan struct{})}
	for _, dir := range all {
		if dir != d.root {
			o.schemas = append(o.schemas, dir)
		}
	}
	slices.Reverse(o.schemas)
	return o, nil
}

// note returns a map of an older schema that programs of ours can go on with. Nil
// means that there is none.
func (o *older) note(name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if !slices.Contains([]string{SockMapPeers, SockMapUdpFlows, SockMapUdpAnswers}, name) {
		return nil, nil
	}
	for _, pin := range o.maps(name) {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening the %s map of an older schema: %w", name, err)
		}
		if spec.Compatible(m) != nil {
			_ = m.Close()
			continue
		}
		c, err := m.Clone() // the pin of the other schema stays as it is
		return c, errors.Join(err, m.Close())
	}
	return nil, nil
}

// links returns where links of a name are pinned, the newest schema first.
func (o *older) links(name string) []string { return o.pins("links", name) }

// maps returns where maps of a name are pinned, the newest schema first.
func (o *older) maps(name string) []string { return o.pins("maps", name) }

func (o *older) pins(part, name string) []string {
	paths := make([]string, len(o.schemas))
	for i, dir := range o.schemas {
		paths[i] = filepath.Join(dir, part, name)
	}
	return paths
}

// retire removes it all in the background, packet programs when their
// connections are over. Call it once the packet backend and our sockets serve.
func (o *older) retire() {
	if len(o.schemas) == 0 {
		return
	}
	o.done.Go(func() {
		for _, dir := range o.schemas {
			if err := o.retireSchema(dir); err != nil {
				o.log.Warn("what an older agent pinned cannot be removed; the next start tries again", "directory", dir, "error", err)
			}
		}
	})
}

func (o *older) retireSchema(dir string) error {
	maps := filepath.Join(dir, "maps")
	for _, name := range []string{"frontends", "service_ranges"} {
		if err := emptyPinned(filepath.Join(maps, name)); err != nil {
			return err
		}
	}
	for end := time.Now().Add(olderMost); time.Now().Before(end); {
		n, err := recentlySeen(filepath.Join(maps, "connections"))
		if err != nil {
			return err
		}
		if o.left.Store(int64(n)); n == 0 {
			break
		}
		select {
		case <-o.stop:
			return nil
		case <-time.After(OlderLook):
		}
	}
	o.left.Store(0)
	if err := errors.Join(removeSchema(dir), removeFilters()); err != nil {
		return err
	}
	o.log.Info("removed what an older agent pinned", "directory", dir)
	return nil
}

// close stops waiting; the next start goes on.
func (o *older) close() {
	close(o.stop)
	o.done.Wait()
}

// recentlySeen counts the connections of v1's table that had a packet lately.
func recentlySeen(path string) (int, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("opening map %s: %w", path, err)
	}
	defer func() { _ = m.Close() }()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("asking for the time: %w", err)
	}
	n := 0
	var key, value []byte
	all := m.Iterate()
	for all.Next(&key, &value) {
		if len(value) < OlderSeen+8 {
			continue
		}
		if seen := binary.NativeEndian.Uint64(value[OlderSeen:]); seen != 0 && now.Nano()-int64(seen) < int64(OlderIdle) {
			n++
		}
	}
	return n, all.Err()
}

// removeFilters removes them from all devices of this network namespace.
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

// removeFiltersOf removes those of a device. The qdisc goes if it is of the kind
// that v1 added and nothing else is on it.
func removeFiltersOf(l netlink.Link) error {
	ours, others := 0, 0
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(l, parent)
		if err != nil {
			return nil //nolint:nilerr // a device that just went, or a kernel without clsact: nothing of ours
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); !ok || !strings.HasPrefix(b.Name, filterPrefix) {
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
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		return fmt.Errorf("listing the qdiscs of %s: %w", l.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		if err := netlink.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("removing the clsact qdisc of %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

package programs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// setSizes puts the options into the maps' specifications. The maps of Services
// are twice as large as what the options allow, as a Sync adds before it deletes.
// None of them allocates ahead.
func setSizes(specs map[string]*ebpf.MapSpec, o Options) {
	for name, n := range map[string]int{
		SockMapFrontends:  2 * o.MaxFrontends,
		SockMapServices:   2 * o.MaxFrontends,
		SockMapSlots:      2 * o.MaxEndpoints,
		SockMapAffinity:   o.MaxAffinity,
		SockMapUdpFlows:   o.MaxAffinity,
		SockMapUdpAnswers: o.MaxAffinity,
	} {
		specs[name].MaxEntries = uint32(n)
	}
}

// openMaps opens the pinned maps that fit their specifications and makes the
// others again. New ones get pinned when all programs are loaded (Pin), or
// where others are in their place when the programs that use those are replaced
// (adoptMaps).
func (p *Programs) openMaps(specs map[string]*ebpf.MapSpec) error {
	fits := true
	pinned := map[string]*ebpf.Map{}
	for name, spec := range specs {
		m, err := ebpf.LoadPinnedMap(filepath.Join(p.Dirs.Maps, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			fits = fits && !slices.Contains(ruled(), name)
			continue
		}
		if err != nil {
			return fmt.Errorf("opening the pinned map %s: %w", name, err)
		}
		pinned[name] = m
		if spec.Compatible(m) != nil && slices.Contains(ruled(), name) {
			fits = false
		}
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		spec, old := specs[name], pinned[name]
		if old != nil && spec.Compatible(old) == nil && (fits || !slices.Contains(ruled(), name)) {
			p.Maps[name] = old
			continue
		}
		m, err := p.older.note(name, spec)
		if m == nil && err == nil {
			m, err = ebpf.NewMap(spec)
		}
		if err != nil {
			return fmt.Errorf("making the %s map: %w", name, err)
		}
		p.Maps[name] = m
		if old != nil {
			p.log.Info("a pinned map has another shape than is wanted now; a new one takes its place", "map", name)
			p.toAdopt[name] = old
			if slices.Contains(ruled(), name) {
				moveEntries(old, m, always)
			}
			continue
		}
		p.toPin = append(p.toPin, name)
	}
	return nil
}

// Pin pins the new maps where nothing is in their place.
func (p *Programs) Pin() error {
	for _, d := range []string{p.Dirs.Maps, p.Dirs.Links} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("making the directory of pins: %w", err)
		}
	}
	for _, name := range p.toPin {
		if err := p.Maps[name].Pin(filepath.Join(p.Dirs.Maps, name)); err != nil {
			return fmt.Errorf("pinning the %s map: %w", name, err)
		}
	}
	return nil
}

// keepPins pins the maps again whose pins somebody has removed or replaced,
// directories and all. An agent that starts later finds them by their pins.
func (p *Programs) keepPins() error {
	for _, d := range []string{p.Dirs.Maps, p.Dirs.Links} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("making the directory of pins: %w", err)
		}
	}
	for name := range p.Maps {
		if p.toAdopt[name] != nil || p.checkPin(name) == nil {
			continue
		}
		if err := p.pinAgain(name); err != nil {
			return fmt.Errorf("pinning the %s map again: %w", name, err)
		}
	}
	return nil
}

func (p *Programs) pinAgain(name string) error {
	again, err := p.Maps[name].Clone() // the map counts as pinned there, so that it would not do it again
	if err != nil {
		return err
	}
	path := filepath.Join(p.Dirs.Maps, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, again.Close())
	}
	return errors.Join(again.Pin(path), again.Close())
}

// checkPin returns an error if our map of a name is not pinned.
func (p *Programs) checkPin(name string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.Dirs.Maps, name), nil)
	if err != nil {
		return fmt.Errorf("the %s map is not pinned: %w", name, err)
	}
	have, err := mapID(m)
	want, wantErr := mapID(p.Maps[name])
	if err = errors.Join(err, wantErr, m.Close()); err != nil {
		return fmt.Errorf("asking for the %s map: %w", name, err)
	}
	if have != want {
		return fmt.Errorf("another map is pinned in place of the %s map", name)
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID() // kernels that tell none tell none of both
	return id, nil
}

// moveEntries copies what a map holds to one that takes its place. Of two values
// of one key the one that is newer stays. What cannot be read is left out.
func moveEntries(from, to *ebpf.Map, newer func(moved, there []byte) bool) {
	if from.KeySize() != to.KeySize() || from.ValueSize() != to.ValueSize() || from.Type() != to.Type() {
		return
	}
	switch from.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.Array:
	default:
		return
	}
	key, value := make([]byte, from.KeySize()), make([]byte, from.ValueSize())
	for entries := from.Iterate(); entries.Next(&key, &value); {
		if err := to.Update(key, value, ebpf.UpdateNoExist); !errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if there, err := to.LookupBytes(key); err == nil && newer(value, there) {
			_ = to.Update(key, value, ebpf.UpdateAny)
		}
	}
}

func always([]byte, []byte) bool { return true }

// newerNote compares two notes of one key. Those whose time is noted begin with it;
// of the others one is as good as the other.
func newerNote(name string) func(moved, there []byte) bool {
	timed := slices.Contains([]string{SockMapAffinity, SockMapUdpFlows, SockMapUdpAnswers}, name)
	return func(moved, there []byte) bool {
		return timed && binary.NativeEndian.Uint64(moved) > binary.NativeEndian.Uint64(there)
	}
}

// moveNotes copies what the programs noted themselves (affinity, flows) to the
// maps that take over. It may be done again: hooks that run the new programs
// already note in the new maps, the others in the old ones.
func (p *Programs) moveNotes() {
	for name, old := range p.toAdopt {
		if !slices.Contains(ruled(), name) {
			moveEntries(old, p.Maps[name], newerNote(name))
		}
	}
}

// adoptMaps pins the maps that replace others, now that no program of ours uses
// those, and takes along what was noted last. A crash in between leaves the
// kernel forwarding and makes the next start do this again.
func (p *Programs) adoptMaps() error {
	p.moveNotes()
	for name, old := range p.toAdopt {
		path := filepath.Join(p.Dirs.Maps, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpinning the old %s map: %w", name, err)
		}
		if err := p.Maps[name].Pin(path); err != nil {
			return fmt.Errorf("pinning the %s map: %w", name, err)
		}
		_ = old.Close()
		delete(p.toAdopt, name)
	}
	return nil
}

// ownMaps returns the maps of a specification that are not the compiler's.
func ownMaps(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	own := maps.Clone(spec.Maps)
	maps.DeleteFunc(own, func(name string, _ *ebpf.MapSpec) bool { return strings.HasPrefix(name, ".") })
	return own
}

// CheckBPFFS sees that things can be pinned in a directory.
func CheckBPFFS(dir string) error {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil && uint32(st.Type) == unix.BPF_FS_MAGIC {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("looking at %s: %w", dir, err)
		}
		if err == nil || filepath.Dir(dir) == dir {
			return fmt.Errorf("%s is not on a bpf file system (mount -t bpf bpffs /sys/fs/bpf): %w", dir, dataplane.ErrUnsupported)
		}
		dir = filepath.Dir(dir)
	}
}

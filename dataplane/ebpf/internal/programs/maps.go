package programs

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
)

// Put writes elements in one system call.
func Put[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("writing %d elements of the %s map: %w", len(keys), MapName(m), err)
	}
	return nil
}

// Remove deletes elements in one system call, or in one more for each that is
// not there.
func Remove[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			return fmt.Errorf("deleting %d elements of the %s map: %w", len(keys), MapName(m), err)
		}
		keys = keys[n+1:]
	}
	return nil
}

// RemoveEach removes elements of maps without batches.
func RemoveEach[K any](m *ebpf.Map, keys []K) error {
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("deleting an element of the %s map: %w", MapName(m), err)
		}
	}
	return nil
}

// Dump reads a whole map in batches.
func Dump[K, V any](m *ebpf.Map, each func(K, V)) error {
	const chunk = 4096
	keys, values := make([]K, chunk), make([]V, chunk)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			each(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the %s map: %w", MapName(m), err)
		}
	}
}

// DumpEach reads maps without batches.
func DumpEach[K, V any](m *ebpf.Map, each func(K, V)) error {
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		each(key, value)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("reading the %s map: %w", MapName(m), err)
	}
	return nil
}

// MapName returns the name that the kernel has for a map.
func MapName(m *ebpf.Map) string {
	info, err := m.Info()
	if err != nil {
		return m.String()
	}
	return info.Name
}

// emptyPinned removes all elements of a pinned map; it need not be there.
func emptyPinned(path string) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening map %s: %w", path, err)
	}
	defer func() { _ = m.Close() }()
	return empty(m)
}

// empty removes all elements of a map.
func empty(m *ebpf.Map) error {
	var keys [][]byte
	var key, value []byte
	all := m.Iterate()
	for all.Next(&key, &value) {
		keys = append(keys, slices.Clone(key))
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading the %s map: %w", MapName(m), err)
	}
	return RemoveEach(m, keys)
}

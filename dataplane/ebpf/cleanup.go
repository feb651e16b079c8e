package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cleanup detaches and unpins all that is ours, of every schema.
func cleanup(o Options) error {
	schemas, err := schemasIn(o.PinDir)
	if err != nil {
		return err
	}
	for _, dir := range schemas {
		if err := removeSchema(dir); err != nil {
			return err
		}
	}
	if err := removeFilters(); err != nil {
		return err
	}
	if err := os.Remove(o.PinDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing the directory of pins: %w", err)
	}
	return nil
}

// removeLeft is cleanup where an earlier agent left something. Every schema has a
// directory of pins.
func removeLeft(o Options) error {
	if schemas, err := schemasIn(o.PinDir); err != nil || len(schemas) == 0 {
		return err
	}
	return cleanup(o)
}

// schemasIn returns the directories of all schemas that are pinned, the newest
// last. Whatever else is there is not ours.
func schemasIn(pinDir string) ([]string, error) {
	entries, err := os.ReadDir(pinDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking for pins: %w", err)
	}
	dirs, numbers := []string{}, map[string]uint64{}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "v")
		number, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || !e.IsDir() {
			continue
		}
		dir := filepath.Join(pinDir, e.Name())
		dirs, numbers[dir] = append(dirs, dir), number
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(numbers[a], numbers[b]) })
	return dirs, nil
}

// removeSchema detaches the links that are pinned below a directory and removes
// every pin there.
func removeSchema(dir string) error {
	for _, part := range []string{"links", "maps", "."} {
		sub := filepath.Join(dir, part)
		entries, err := os.ReadDir(sub)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking for pins: %w", err)
		}
		for _, e := range entries {
			pin := filepath.Join(sub, e.Name())
			if e.IsDir() {
				continue
			}
			if part == "links" {
				err = detach(pin)
			} else {
				err = os.Remove(pin)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("unpinning %s: %w", e.Name(), err)
			}
		}
		if err := os.Remove(sub); err != nil && part != "." {
			return fmt.Errorf("removing the directory of pins: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the directory of pins: %w", err)
	}
	return nil
}

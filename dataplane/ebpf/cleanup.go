package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// schemasIn are the directories of all schemas that are pinned, the newest last.
func schemasIn(pinDir string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(pinDir, "v*"))
	if err != nil {
		return nil, fmt.Errorf("looking for pins: %w", err)
	}
	return found, nil
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

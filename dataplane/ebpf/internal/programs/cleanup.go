package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Cleanup detaches and unpins all that is ours, of every schema.
func Cleanup(pinDir string) error {
	schemas, err := SchemasIn(pinDir)
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
	if err := os.Remove(pinDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing the directory of pins: %w", err)
	}
	return nil
}

// RemoveLeft cleans up if an earlier agent left something. Every schema has a
// directory of pins.
func RemoveLeft(pinDir string) error {
	if schemas, err := SchemasIn(pinDir); err != nil || len(schemas) == 0 {
		return err
	}
	return Cleanup(pinDir)
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

// Find returns what is pinned of every schema.
func Find(pinDir string) ([]string, error) {
	schemas, err := SchemasIn(pinDir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, dir := range schemas {
		links, linksErr := pinsIn(filepath.Join(dir, "links"))
		maps, mapsErr := pinsIn(filepath.Join(dir, "maps"))
		err = errors.Join(err, linksErr, mapsErr)
		out = append(out, fmt.Sprintf("%d attached programs and %d maps in %s", links, maps, dir))
	}
	return out, err
}

func pinsIn(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking for pins: %w", err)
	}
	return len(entries), nil
}

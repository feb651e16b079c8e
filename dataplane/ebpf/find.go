package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// find returns what is pinned of every schema.
func find(o Options) ([]string, error) {
	schemas, err := schemasIn(o.PinDir)
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

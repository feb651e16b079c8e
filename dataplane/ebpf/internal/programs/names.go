package programs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What is ours in the kernel has these names.

// schema is in the path of everything pinned. It changes when a structure of
// bpf/types.h does.
const schema = "v2"

// Dirs are where maps and links are pinned.
type Dirs struct{ root, Maps, Links string }

func makeDirs(pinDir string) Dirs {
	root := filepath.Join(pinDir, schema)
	return Dirs{root: root, Maps: filepath.Join(root, "maps"), Links: filepath.Join(root, "links")}
}

// ruled returns the names of the maps that Sync writes. They are reused all or none:
// they refer to each other.
func ruled() []string {
	return []string{SockMapFrontends, SockMapServices, SockMapSlots, SockMapNodeAddresses, SockMapSettings}
}

// SchemasIn returns the directories of all schemas that are pinned, the newest
// last. Whatever else is there is not ours.
func SchemasIn(pinDir string) ([]string, error) {
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

// filterPrefix starts the names of the filters that v1 attached to devices on
// kernels without tcx.
const filterPrefix = "switchyard_"

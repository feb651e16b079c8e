package programs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Schemas are in the order of their numbers, and what is none is left alone.
func TestSchemasIn(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"v10", "v9", "v2", "v", "v2-saved", "v-1", "vendor", "2", "V3"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "v7"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("vendor", filepath.Join(dir, "v8")); err != nil {
		t.Fatal(err)
	}
	got, err := SchemasIn(dir)
	want := []string{filepath.Join(dir, "v2"), filepath.Join(dir, "v9"), filepath.Join(dir, "v10")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("SchemasIn gives %q, %v; want %q", got, err, want)
	}
	if got, err := SchemasIn(filepath.Join(dir, "none")); err != nil || len(got) > 0 {
		t.Errorf("without a directory: %q, %v", got, err)
	}
}

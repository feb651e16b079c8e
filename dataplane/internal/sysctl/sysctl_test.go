package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestSettings(t *testing.T) {
	cases := []struct {
		name, have string
		do         func(Tree) error
		want       string
	}{
		{"set another value", "0\n", func(s Tree) error { return s.Set("net/x", "1") }, "1"},
		{"set the value it has: not written", "1\n", func(s Tree) error { return s.Set("net/x", "1") }, "1\n"},
		{"raise", "5\n", func(s Tree) error { return s.Raise("net/x", 7) }, "7"},
		{"raise never lowers", "9\n", func(s Tree) error { return s.Raise("net/x", 7) }, "9\n"},
		{"raise a large number", "4294967295\n", func(s Tree) error { return s.Raise("net/x", 7) }, "4294967295\n"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "net", "x")
			if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(tc.have), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := tc.do(Tree(dir)); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != tc.want {
				t.Errorf("file holds %q (%v), want %q", got, err, tc.want)
			}
		})
	}
}

func TestAbsentSetting(t *testing.T) {
	dir := Tree(t.TempDir())
	if err := dir.Set("net/x", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Set gives %v, want an error that says it does not exist", err)
	}
	if _, err := os.Stat(filepath.Join(string(dir), "net", "x")); err == nil {
		t.Error("Set created the file")
	}
}

func TestKernel(t *testing.T) {
	if kind, err := Proc.Get("kernel/ostype"); err != nil || kind != "Linux" {
		t.Errorf("kernel/ostype is %q (%v)", kind, err)
	}
}

package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "server")
	if err := os.WriteFile(program, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "server.tar")
	if err := Write(to, Spec{Name: "lab.test/server:1", Program: program, Args: []string{"pause"}}); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, archive)

	var m []manifest
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil || len(m) != 1 {
		t.Fatalf("manifest %q: %v", files["manifest.json"], err)
	}
	if got := m[0].RepoTags; len(got) != 1 || got[0] != "lab.test/server:1" {
		t.Errorf("name of the image: %v", got)
	}
	var c config
	if err := json.Unmarshal(files[m[0].Config], &c); err != nil {
		t.Fatalf("config: %v", err)
	}
	if got := slices.Concat(c.Config.Entrypoint, c.Config.Cmd); !slices.Equal(got, []string{"/server", "pause"}) {
		t.Errorf("command of the image: %v", got)
	}
	layer := files[m[0].Layers[0]]
	sum := sha256.Sum256(layer)
	if got, want := c.RootFS.DiffIDs[0], "sha256:"+hex.EncodeToString(sum[:]); got != want {
		t.Errorf("layer id %s, want %s", got, want)
	}
	if got := unpack(t, layer)["server"]; string(got) != "a program" {
		t.Errorf("program in the layer: %q", got)
	}
}

func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

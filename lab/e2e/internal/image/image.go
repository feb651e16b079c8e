// Package image packs one static program as a container image.
//
// The result is a docker-archive, which containerd imports from a file: the lab
// needs no registry.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
)

// Spec says what is in an image.
type Spec struct {
	Name    string // with its tag, for instance "example.test/agnhost:lab"
	Program string // file on this machine; becomes /NAME and the entry point
	Args    []string
}

type config struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Config       runtimeConfig `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
}

type runtimeConfig struct {
	Entrypoint []string
	Cmd        []string
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write packs spec into the file at to.
func Write(to string, spec Spec) error {
	if err := write(to, spec); err != nil {
		return fmt.Errorf("packing image %s: %w", spec.Name, err)
	}
	return nil
}

func write(to string, spec Spec) error {
	program, err := os.ReadFile(spec.Program)
	if err != nil {
		return err
	}
	entry := "/" + filepath.Base(spec.Program)
	var layer bytes.Buffer
	if err := pack(&layer, []file{{name: "tmp", dir: true, mode: 0o1777}, {name: path.Base(entry), mode: 0o755, data: program}}); err != nil {
		return err
	}
	sum := sha256.Sum256(layer.Bytes())
	conf, err := json.Marshal(config{
		Architecture: runtime.GOARCH, OS: "linux",
		Config: runtimeConfig{Entrypoint: []string{entry}, Cmd: spec.Args},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	man, err := json.Marshal([]manifest{{Config: "config.json", RepoTags: []string{spec.Name}, Layers: []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	// Renamed when complete, so that an interrupted run leaves no half image.
	out, err := os.CreateTemp(filepath.Dir(to), ".image-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(out.Name()) }()
	err = pack(out, []file{
		{name: "config.json", mode: 0o644, data: conf},
		{name: "layer.tar", mode: 0o644, data: layer.Bytes()},
		{name: "manifest.json", mode: 0o644, data: man},
	})
	if err != nil {
		_ = out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

type file struct {
	name string
	mode int64
	dir  bool
	data []byte
}

func pack(to io.Writer, files []file) error {
	w := tar.NewWriter(to)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.dir {
			h.Name, h.Typeflag = f.name+"/", tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	return w.Close()
}

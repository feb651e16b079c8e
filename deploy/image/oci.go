package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// part is the image of one architecture.
type part struct {
	arch, revision, at string
	packages           []debian
	tools, program     tree // a layer each: the first one changes less often
	bill               []byte
}

// image puts a part together.
func (p part) image(version string) (v1.Image, error) {
	at, err := time.Parse(time.RFC3339, p.at)
	if err != nil {
		return nil, fmt.Errorf("the time of the commit: %w", err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, layer := range []struct {
		files tree
		says  string
	}{{p.tools, "what the backends call, of Debian 12"}, {p.program, "switchyard " + version}} {
		data, err := layer.files.archive()
		if err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, fmt.Errorf("compressing a layer: %w", err)
		}
		if img, err = mutate.Append(img, mutate.Addendum{
			Layer: l, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: layer.says},
		}); err != nil {
			return nil, fmt.Errorf("adding a layer: %w", err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("making the configuration: %w", err)
	}
	c = c.DeepCopy()
	c.Architecture, c.OS, c.Created = p.arch, "linux", v1.Time{Time: at}
	c.Config = v1.Config{
		Entrypoint: []string{"/usr/local/bin/switchyard"}, Cmd: []string{"run"},
		Env: []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "switchyard",
			"org.opencontainers.image.version":  version,
			"org.opencontainers.image.revision": p.revision,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	return mutate.ConfigFile(img, c)
}

// index is the image of all architectures.
func index(parts []part, version string) (v1.ImageIndex, error) {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range parts {
		img, err := p.image(version)
		if err != nil {
			return nil, fmt.Errorf("the image for %s: %w", p.arch, err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: p.arch}},
		})
	}
	return idx, nil
}

// write writes the image as an OCI layout, as one file of that, and what it is
// made of.
func write(o options, parts []part) error {
	idx, err := index(parts, o.version)
	if err != nil {
		return err
	}
	dir := filepath.Join(o.out, "oci")
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	if err := to.AppendIndex(idx, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": o.version,
		"io.containerd.image.name":          o.name + ":" + o.version,
	})); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	if err := archiveLayout(dir, filepath.Join(o.out, "switchyard.tar")); err != nil {
		return err
	}
	digest, err := idx.Digest()
	if err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	errs := []error{os.WriteFile(filepath.Join(o.out, "digest"), []byte(digest.String()+"\n"), 0o644)}
	for _, p := range parts {
		errs = append(errs, os.WriteFile(filepath.Join(o.out, "sbom-"+p.arch+".spdx.json"), p.bill, 0o644))
	}
	fmt.Printf("%s:%s\n%s\n%s\n", o.name, o.version, digest, filepath.Join(o.out, "switchyard.tar"))
	return errors.Join(errs...)
}

// archiveLayout packs a layout as one file, which containerd, podman and docker
// import.
func archiveLayout(dir, to string) error {
	t := tree{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		t.put(name, 0o644, data)
		return err
	})
	if err != nil {
		return fmt.Errorf("packing the image: %w", err)
	}
	out, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("packing the image: %w", err)
	}
	return errors.Join(t.pack(out), out.Close())
}

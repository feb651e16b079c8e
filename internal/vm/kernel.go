package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// series is a line of kernels that Debian has.
type series struct {
	name string // "6.1"
	meta string // the package that depends on the newest image
}

// allSeries are the kernels of the matrix. The machine that runs this is the
// third; 6.1 is the oldest that Debian 12 has.
func allSeries() []series {
	return []series{{"6.1", "linux-image-amd64"}, {"6.12", "linux-image-6.12-amd64"}}
}

func seriesNames() []string {
	var names []string
	for _, s := range allSeries() {
		names = append(names, s.name)
	}
	return names
}

// kernel is an unpacked kernel.
type kernel struct {
	version string // as uname -r has it
	image   string // the file that boots
	root    string // holds lib/modules/VERSION
}

// fetchKernel finds the newest kernel of a series in the cache, or downloads
// and unpacks it there.
func fetchKernel(ctx context.Context, s series, cache string) (kernel, error) {
	name, err := resolve(ctx, s)
	if err != nil {
		return kernel{}, err
	}
	root := filepath.Join(cache, name)
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		if err := download(ctx, s, &name, cache); err != nil {
			return kernel{}, err
		}
		root = filepath.Join(cache, name)
	}
	version := strings.TrimPrefix(name, "linux-image-")
	return kernel{version: version, image: filepath.Join(root, "boot", "vmlinuz-"+version), root: root}, nil
}

// resolve finds the image that a series' meta-package depends on, where need
// be after an update of apt's lists.
func resolve(ctx context.Context, s series) (string, error) {
	out, err := command(ctx, "", "apt-cache", "depends", s.meta)
	name := imageOf(out, s)
	if err == nil && name != "" {
		return name, nil
	}
	if _, err := command(ctx, "", "apt-get", "update"); err != nil {
		return "", err
	}
	if out, err = command(ctx, "", "apt-cache", "depends", s.meta); err != nil {
		return "", err
	}
	if name = imageOf(out, s); name == "" {
		return "", fmt.Errorf("package %s depends on no image of Linux %s here: %s", s.meta, s.name, strings.TrimSpace(out))
	}
	return name, nil
}

// imageOf finds the image in what apt-cache says of the meta-package's
// dependencies; "": there is none of that series.
func imageOf(depends string, s series) string {
	for line := range strings.Lines(depends) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-"+s.name+".") {
			return name
		}
	}
	return ""
}

// download downloads an image and unpacks it. Where the mirror has it no more,
// a newer one is named by fresh lists.
func download(ctx context.Context, s series, name *string, cache string) error {
	fetch := func() error {
		// Without apt's own user, who may not write into a home or a checkout.
		_, err := command(ctx, cache, "apt-get", "download", "-o", "APT::Sandbox::User=root", *name)
		return err
	}
	if err := fetch(); err != nil {
		if _, err := command(ctx, "", "apt-get", "update"); err != nil {
			return err
		}
		if *name, err = resolve(ctx, s); err != nil {
			return err
		}
		if err := fetch(); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(cache, *name+"_*.deb"))
	if err != nil || len(packages) == 0 {
		return fmt.Errorf("apt-get download %s left no package in %s: %w", *name, cache, err)
	}
	// It has its name once it is complete.
	root, err := os.MkdirTemp(cache, "unpacking-")
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", *name, err)
	}
	defer func() { _ = os.RemoveAll(root) }()
	if _, err := command(ctx, "", "dpkg", "-x", packages[len(packages)-1], root); err != nil {
		return err
	}
	if _, err := command(ctx, "", "depmod", "-b", root, strings.TrimPrefix(*name, "linux-image-")); err != nil {
		return err
	}
	if err := os.Rename(root, filepath.Join(cache, *name)); err != nil {
		return fmt.Errorf("unpacking %s: %w", *name, err)
	}
	for _, p := range packages {
		if err := os.Remove(p); err != nil {
			return fmt.Errorf("removing a package that is unpacked: %w", err)
		}
	}
	return nil
}

// command runs a command in a folder and gives its output. Where it fails the
// error has what it wrote.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

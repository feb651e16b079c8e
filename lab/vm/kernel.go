package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// newest names the series that has no number, because it changes.
const newest = "newest"

// series is a line of kernels that Debian has.
type series struct {
	name  string // "6.1"
	meta  string // the package that depends on the newest image
	suite string // of Debian, that has the package; empty means one that this machine's apt knows
}

// allSeries are the kernels that tests can run on. The machine that runs this
// command is one more. 6.1 is what Debian 12 has.
func allSeries() []series {
	return []series{
		{"5.10", "linux-image-amd64", "bullseye-security"},
		{"6.1", "linux-image-amd64", ""},
		{"6.12", "linux-image-6.12-amd64", ""},
		{newest, "linux-image-amd64", "trixie-backports"},
	}
}

// choose returns the series that a name stands for. "all" stands for those that
// each change is tested on. A number that no series has asks for the newest
// kernel, which must then have it (see kernel.is).
func choose(name string) ([]series, error) {
	if name == "all" {
		return allSeries()[1:], nil
	}
	for _, s := range allSeries() {
		if s.name == name {
			return []series{s}, nil
		}
	}
	if !regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`).MatchString(name) {
		return nil, fmt.Errorf("%q is not one of %s, all and a number of Debian's newest kernel", name, strings.Join(seriesNames(), ", "))
	}
	last := allSeries()[len(allSeries())-1]
	return []series{last}, nil
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

// is reports whether a name on the command line, if it is a number, is the start
// of the kernel's version.
func (k kernel) is(name string) bool {
	return name == "all" || name == newest || strings.HasPrefix(k.version, name+".")
}

// fetchKernel finds the newest kernel of a series in the cache, or downloads
// and unpacks it there.
func fetchKernel(ctx context.Context, s series, cache string) (kernel, error) {
	a, err := openApt(ctx, s.suite, cache)
	if err != nil {
		return kernel{}, err
	}
	name, err := a.resolve(ctx, s)
	if err != nil {
		return kernel{}, err
	}
	root := filepath.Join(cache, name)
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		if name, err = a.download(ctx, s, name, cache); err != nil {
			return kernel{}, err
		}
		root = filepath.Join(cache, name)
	}
	version := strings.TrimPrefix(name, "linux-image-")
	image := filepath.Join(root, "boot", "vmlinuz-"+version)
	if _, err := os.Stat(image); err != nil {
		image = filepath.Join(root, "lib/modules", version, "vmlinuz") // since Linux 7
	}
	return kernel{version: version, image: image, root: root}, nil
}

// resolve finds the image that a series' meta-package depends on, where need
// be after an update of apt's lists.
func (a *apt) resolve(ctx context.Context, s series) (string, error) {
	out, err := a.cache(ctx, "depends", s.meta)
	name := imageOf(out, s)
	if err == nil && name != "" {
		return name, nil
	}
	if err := a.update(ctx); err != nil {
		return "", err
	}
	if out, err = a.cache(ctx, "depends", s.meta); err != nil {
		return "", err
	}
	if name = imageOf(out, s); name == "" {
		return "", fmt.Errorf("package %s depends on no image of Linux %s here: %s", s.meta, s.name, strings.TrimSpace(out))
	}
	return name, nil
}

// imageOf finds the image in what apt-cache says of the meta-package's
// dependencies. Empty means that there is none of that series.
func imageOf(depends string, s series) string {
	version := `[0-9]`
	if s.name != newest {
		version = regexp.QuoteMeta(s.name + ".")
	}
	found := regexp.MustCompile(`(?m)^ *Depends: (linux-image-` + version + `.*)$`).FindStringSubmatch(depends)
	if found == nil {
		return ""
	}
	return found[1]
}

// partsOf finds the packages of the same version that an image depends on: since
// Linux 7, kernel and modules are not in the image's own.
func partsOf(depends, image string) []string {
	version := strings.TrimPrefix(image, "linux-image-")
	parts := []string{image}
	for _, found := range regexp.MustCompile(`(?m)^ *Depends: (linux-.*)$`).FindAllStringSubmatch(depends, -1) {
		if strings.HasSuffix(found[1], "-"+version) {
			parts = append(parts, found[1])
		}
	}
	return parts
}

// download downloads an image and unpacks it, and returns its name. Where the
// mirror has it no more, a newer one is named by fresh lists.
func (a *apt) download(ctx context.Context, s series, name, cache string) (string, error) {
	// It has its name once it is complete.
	root, err := os.MkdirTemp(cache, "unpacking-")
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	defer func() { _ = os.RemoveAll(root) }()
	if err := a.unpack(ctx, name, root); err != nil {
		if err := a.update(ctx); err != nil {
			return "", err
		}
		if name, err = a.resolve(ctx, s); err != nil {
			return "", err
		}
		if err := a.unpack(ctx, name, root); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat(filepath.Join(root, "lib")); errors.Is(err, os.ErrNotExist) {
		if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
			return "", fmt.Errorf("unpacking %s: %w", name, err)
		}
	}
	if _, err := command(ctx, "", "depmod", "-b", root, strings.TrimPrefix(name, "linux-image-")); err != nil {
		return "", err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	if err := os.Rename(root, filepath.Join(cache, name)); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	return name, nil
}

// unpack downloads the packages of an image and unpacks them into a folder.
func (a *apt) unpack(ctx context.Context, image, root string) error {
	depends, err := a.cache(ctx, "depends", image)
	if err != nil {
		return err
	}
	parts := partsOf(depends, image)
	packages, err := os.MkdirTemp(filepath.Dir(root), "packages-")
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", image, err)
	}
	defer func() { _ = os.RemoveAll(packages) }()
	if err := a.fetch(ctx, packages, parts); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(packages, "*.deb"))
	if err != nil || len(files) != len(parts) {
		return fmt.Errorf("apt-get download %s left %d packages: %w", strings.Join(parts, " "), len(files), err)
	}
	for _, f := range files {
		if _, err := command(ctx, "", "dpkg", "-x", f, root); err != nil {
			return err
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

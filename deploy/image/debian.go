package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debian is a package of one architecture, pinned by the hash of its file.
type debian struct{ arch, name, version, sha256 string }

func (d debian) file() string {
	return fmt.Sprintf("%s_%s_%s.deb", d.name, strings.ReplaceAll(d.version, ":", "%3a"), d.arch)
}

// names are the packages whose files the image may have.
func names() []string {
	return []string{
		"iptables", "libip4tc2", "libip6tc2", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libxtables12",
		// Of kube-proxy's nftables mode something may have to be cleaned up.
		"nftables", "libnftables1", "libedit2", "libbsd0", "libmd0", "libjansson4", "libgmp10", "libtinfo6",
		// ip_vs is not loaded by the kernel itself.
		"kmod", "libkmod2", "libzstd1", "liblzma5", "libssl3",
		"libc6",
	}
}

const header = `# The Debian packages that the image takes files from: architecture, name,
# version, SHA-256 of the package's file. Written by "make image-pin".
`

func readPackages(file string) ([]debian, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the pinned packages: %w", err)
	}
	var all []debian
	for i, line := range strings.Split(string(data), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 || len(f[3]) != hex.EncodedLen(sha256.Size) {
			return nil, fmt.Errorf("%s:%d: %q: want an architecture, a name, a version and a SHA-256", file, i+1, line)
		}
		all = append(all, debian{f[0], f[1], f[2], f[3]})
	}
	return all, nil
}

// apt is the machine's apt with a state of its own, so that packages of another
// architecture can be asked for and nothing on the machine changes.
type apt struct{ dir, arch string }

func newAPT(cache, arch string) (apt, error) {
	dir, err := filepath.Abs(filepath.Join(cache, "apt-"+arch))
	if err != nil {
		return apt{}, fmt.Errorf("readying apt: %w", err)
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return apt{}, fmt.Errorf("readying apt: %w", err)
		}
	}
	return apt{dir, arch}, os.WriteFile(filepath.Join(dir, "state/status"), nil, 0o644)
}

func (a apt) run(ctx context.Context, in, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, append([]string{
		"-o", "APT::Architecture=" + a.arch, "-o", "APT::Architectures=" + a.arch,
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "state/status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=",
		"-q",
	}, args...)...)
	cmd.Dir = in
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return nil, fmt.Errorf("running %s for %s: %w", program, a.arch, err)
	}
	return out, nil
}

// fetch has the files of packages in the cache, each with its pinned hash.
func fetch(ctx context.Context, cache, arch string, packages []debian) ([]string, error) {
	dir := filepath.Join(cache, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("fetching packages: %w", err)
	}
	var files, missing []string
	for _, d := range packages {
		file := filepath.Join(dir, d.file())
		files = append(files, file)
		if check(file, d) != nil {
			missing = append(missing, d.name+"="+d.version)
		}
	}
	if missing == nil {
		return files, nil
	}
	a, err := newAPT(cache, arch)
	if err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, dir, "apt-get", "update"); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, dir, "apt-get", append([]string{"download"}, missing...)...); err != nil {
		return nil, fmt.Errorf("%w (the package sources must have Debian 12; "+
			"where a version is gone from them, make image-pin takes the newest)", err)
	}
	for i, d := range packages {
		if err := check(files[i], d); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func check(file string, d debian) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("package %s: %w", d.name, err)
	}
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != d.sha256 {
		return fmt.Errorf("package %s %s for %s: SHA-256 is %s, pinned is %s", d.name, d.version, d.arch, got, d.sha256)
	}
	return nil
}

// pin writes the list of packages anew.
func pin(ctx context.Context, cache, to string) error {
	var all []debian
	for _, arch := range []string{"amd64", "arm64"} {
		a, err := newAPT(cache, arch)
		if err != nil {
			return err
		}
		if _, err := a.run(ctx, "", "apt-get", "update"); err != nil {
			return err
		}
		out, err := a.run(ctx, "", "apt-cache", append([]string{"show", "--no-all-versions"}, names()...)...)
		if err != nil {
			return err
		}
		found, err := parseRecords(arch, out)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	var text strings.Builder
	text.WriteString(header)
	for _, d := range all {
		fmt.Fprintf(&text, "%s %s %s %s\n", d.arch, d.name, d.version, d.sha256)
	}
	return os.WriteFile(to, []byte(text.String()), 0o644)
}

// parseRecords reads what apt-cache shows.
func parseRecords(arch string, records []byte) ([]debian, error) {
	var all []debian
	for record := range strings.SplitSeq(string(records), "\n\n") {
		d := debian{arch: arch}
		for line := range strings.Lines(record) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			if field, ok := map[string]*string{"Package": &d.name, "Version": &d.version, "SHA256": &d.sha256}[key]; ok {
				*field = value
			}
		}
		if d.name != "" {
			all = append(all, d)
		}
	}
	if len(all) != len(names()) {
		return nil, fmt.Errorf("pinning packages for %s: the package sources have %d of %d", arch, len(all), len(names()))
	}
	slices.SortFunc(all, func(a, b debian) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

// addPackage adds the files of a package.
func (t tree) addPackage(ctx context.Context, d debian, file string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", file, err)
	}
	for r := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", file, err)
		}
		n := node{mode: h.Mode & 0o755, from: d.name} // no bits that give rights
		switch h.Typeflag {
		case tar.TypeReg:
			if n.data, err = io.ReadAll(r); err != nil {
				return fmt.Errorf("unpacking %s: %w", file, err)
			}
		case tar.TypeSymlink:
			n.target = h.Linkname
		default:
			continue
		}
		t[merged(h.Name)] = n
	}
}

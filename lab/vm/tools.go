package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// tools are the programs that backends and tests call, beside busybox's. What
// this machine has not is left out: a test that needs it says so.
func tools() []string {
	var all []string
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, variant := range []string{"", "-nft", "-legacy"} {
			for _, what := range []string{"", "-save", "-restore"} {
				all = append(all, f+variant+what)
			}
		}
	}
	return append(all, "sh", "sleep", "ip", "tc", "bridge", "ss", "ethtool", "nft", "ipset",
		"ipvsadm", "conntrack", "modprobe", "insmod", "rmmod", "lsmod", "nsenter", "unshare", "flock", "tcpdump", "strace")
}

// searched are where programs are looked for, as files of this machine.
func searched() []string {
	return []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"}
}

// plugins are the folders that programs load from at run time.
func plugins() []string {
	return []string{"/usr/lib/x86_64-linux-gnu/xtables"}
}

// copyTools copies the tools with the libraries that they need into a root, and
// more programs by their paths, which are found by name there.
func copyTools(root string, more []string) error {
	c := &copier{root: root, done: map[string]bool{}}
	for _, path := range more {
		if err := copyFile(path, filepath.Join(root, "usr/bin", filepath.Base(path))); err != nil {
			return err
		}
		if err := c.needs(path); err != nil {
			return err
		}
	}
	for _, t := range tools() {
		for _, dir := range searched() {
			err := c.program(filepath.Join(dir, t))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			break
		}
	}
	for _, dir := range plugins() {
		files, err := filepath.Glob(filepath.Join(dir, "*.so"))
		if err != nil {
			return fmt.Errorf("listing plugins: %w", err)
		}
		for _, f := range files {
			if err := c.program(f); err != nil {
				return err
			}
		}
	}
	for _, f := range []string{"/etc/protocols", "/etc/services", "/etc/iproute2/rt_tables"} {
		if err := c.file(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copier copies files of this machine to the same places below a root.
type copier struct {
	root string
	done map[string]bool
}

// file copies a file; of a symbolic link, the link and what it leads to.
func (c *copier) file(path string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	path = filepath.Join(dir, filepath.Base(path))
	if c.done[path] {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	c.done[path] = true
	to := filepath.Join(c.root, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("making a folder of the image: %w", err)
	}
	if info.Mode()&os.ModeSymlink == 0 {
		return copyFile(path, to)
	}
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, to); err != nil {
		return fmt.Errorf("making a link of the image: %w", err)
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(dir, target)
	}
	return c.file(target)
}

// program copies a program or a library, and the libraries that it needs.
func (c *copier) program(path string) error {
	if err := c.file(path); err != nil {
		return err
	}
	return c.needs(path)
}

// needs copies the libraries that a program or a library needs.
func (c *copier) needs(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if c.done["elf:"+real] {
		return nil
	}
	c.done["elf:"+real] = true
	f, err := elf.Open(real)
	if err != nil {
		return nil // a script
	}
	defer func() { _ = f.Close() }()
	for _, s := range f.Progs {
		if s.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, s.Filesz)
		if _, err := s.ReadAt(loader, 0); err != nil {
			return fmt.Errorf("reading which loader %s has: %w", real, err)
		}
		if err := c.file(strings.TrimRight(string(loader), "\x00")); err != nil {
			return err
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading which libraries %s needs: %w", real, err)
	}
	for _, name := range needed {
		if err := c.library(name); err != nil {
			return fmt.Errorf("%s: %w", real, err)
		}
	}
	return nil
}

func (c *copier) library(name string) error {
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"} {
		err := c.program(filepath.Join(dir, name))
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("library %s is nowhere: %w", name, os.ErrNotExist)
}

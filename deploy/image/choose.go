package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// programs are what the agent calls, as the packages name them.
func programs() []string {
	var all []string
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, variant := range []string{"nft", "legacy"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				all = append(all, "usr/sbin/"+base+"-"+variant+verb)
			}
		}
	}
	return append(all, "usr/sbin/nft", "usr/sbin/modprobe")
}

// choose takes from the packages' files what the agent calls, what that needs,
// and the licences. A library that nothing needs stays behind.
func choose(from tree, arch string) (tree, error) {
	t := tree{}
	for _, name := range programs() {
		if err := t.take(from, name); err != nil {
			return nil, err
		}
	}
	// Every extension of iptables, as rules of other programs have to be read
	// back too; none of ebtables and arptables, which are in the same folder.
	lib, _ := triplet(arch)
	for _, name := range slices.Sorted(maps.Keys(from)) {
		extension, ok := strings.CutPrefix(name, "usr/lib/"+lib+"/xtables/lib")
		if ok && !strings.HasPrefix(extension, "ebt_") && !strings.HasPrefix(extension, "arpt_") {
			if err := t.take(from, name); err != nil {
				return nil, err
			}
		}
	}
	if err := t.close(from, lib); err != nil {
		return nil, err
	}
	// iptables is nft where neither kubelet nor an earlier agent left a trace.
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			t.link("usr/sbin/"+base+verb, base+"-nft"+verb)
		}
	}
	for _, top := range []string{"bin", "sbin", "lib", "lib64"} {
		t.link(top, "usr/"+top)
		t.folder("usr/"+top, 0o755)
	}
	// Where a DaemonSet mounts folders of the host, and the kernel's own.
	for _, dir := range []string{"dev", "proc", "run", "sys", "etc", "usr/lib/modules", "host/proc/sys/net", "host/sys/fs/cgroup"} {
		t.folder(dir, 0o755)
	}
	t.folder("tmp", 0o1777)
	return t, t.licences(from)
}

// take takes a file, and the links that lead to it.
func (t tree) take(from tree, name string) error {
	file, err := from.resolve(name)
	if err != nil {
		return fmt.Errorf("taking %s from the packages: %w", name, err)
	}
	t[file] = from[file]
	for at := merged(name); at != file; {
		n := from[at]
		t[at] = n
		if path.IsAbs(n.target) {
			at = merged(n.target)
		} else {
			at = merged(path.Join(path.Dir(at), n.target))
		}
	}
	return nil
}

// close takes the libraries that what was taken needs, and those that they need.
func (t tree) close(from tree, lib string) error {
	for done := map[string]bool{}; ; {
		var next []string
		for name, n := range t {
			if !done[name] && bytes.HasPrefix(n.data, []byte(elf.ELFMAG)) {
				next = append(next, name)
			}
		}
		if next == nil {
			return nil
		}
		slices.Sort(next)
		for _, name := range next {
			done[name] = true
			needed, err := needs(t[name].data, lib)
			if err != nil {
				return fmt.Errorf("looking at /%s: %w", name, err)
			}
			for _, want := range needed {
				if !path.IsAbs(want) {
					want = "usr/lib/" + lib + "/" + want
				}
				if err := t.take(from, want); err != nil {
					return fmt.Errorf("/%s: %w", name, err)
				}
			}
		}
	}
}

// needs is the shared libraries of a program or library, and its loader.
func needs(data []byte, lib string) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if want := map[string]elf.Machine{"x86_64-linux-gnu": elf.EM_X86_64, "aarch64-linux-gnu": elf.EM_AARCH64}[lib]; f.Machine != want {
		return nil, fmt.Errorf("it is for %v, not for %v", f.Machine, want)
	}
	all, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, p.Filesz)
		if _, err := p.ReadAt(loader, 0); err != nil {
			return nil, err
		}
		all = append(all, strings.TrimRight(string(loader), "\x00"))
	}
	return all, nil
}

// licences takes the copyright file of each package that something is from.
func (t tree) licences(from tree) error {
	for _, name := range t.sources() {
		doc := "usr/share/doc/" + name
		if n := from[doc]; n.target != "" { // it is that of a sister package
			t[doc] = n
			doc = path.Join(path.Dir(doc), n.target)
		}
		if err := t.take(from, doc+"/copyright"); err != nil {
			return fmt.Errorf("the licence of package %s: %w", name, err)
		}
	}
	return nil
}

// sources are the packages that something in the tree is from.
func (t tree) sources() []string {
	all := map[string]bool{}
	for _, n := range t {
		if n.from != "" {
			all[n.from] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMerged(t *testing.T) {
	for name, want := range map[string]string{
		"./lib/x86_64-linux-gnu/libc.so.6": "usr/lib/x86_64-linux-gnu/libc.so.6",
		"/lib64/ld-linux-x86-64.so.2":      "usr/lib64/ld-linux-x86-64.so.2",
		"./usr/sbin/nft":                   "usr/sbin/nft",
		"./bin/kmod":                       "usr/bin/kmod",
		"./library/x":                      "library/x",
	} {
		if got := merged(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestResolve(t *testing.T) {
	files := tree{}
	files.put("usr/sbin/xtables-nft-multi", 0o755, nil)
	files.link("usr/sbin/iptables-nft", "xtables-nft-multi")
	files.link("usr/sbin/iptables", "/sbin/iptables-nft")
	files.link("usr/sbin/loop", "loop")
	files.link("usr/sbin/lost", "../lib/nobody")
	for name, want := range map[string]string{
		"usr/sbin/xtables-nft-multi": "usr/sbin/xtables-nft-multi",
		"usr/sbin/iptables":          "usr/sbin/xtables-nft-multi",
		"sbin/iptables":              "usr/sbin/xtables-nft-multi",
		"usr/sbin/loop":              "",
		"usr/sbin/lost":              "",
	} {
		if got, err := files.resolve(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestPinned: both architectures get the same packages.
func TestPinned(t *testing.T) {
	all, err := readPackages("packages.txt")
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]map[string]string{"amd64": {}, "arm64": {}}
	for _, d := range all {
		versions[d.arch][d.name] = d.version
	}
	for _, name := range names() {
		a, b := versions["amd64"][name], versions["arm64"][name]
		if a == "" || a != b {
			t.Errorf("%s: pinned at %q for amd64 and at %q for arm64", name, a, b)
		}
	}
	if len(all) != 2*len(names()) {
		t.Errorf("%d packages are pinned, want %d", len(all), 2*len(names()))
	}
}

func TestReadPackagesErrors(t *testing.T) {
	for text, says := range map[string]string{
		"amd64 iptables 1.8.9-2\n":      `packages.txt:1: "amd64 iptables 1.8.9-2"`,
		"# one\namd64 iptables 1 abc\n": "packages.txt:2:",
	} {
		file := filepath.Join(t.TempDir(), "packages.txt")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readPackages(file); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want an error that says %q", text, err, says)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for args, says := range map[string]string{
		"-arch=riscv64":           `--arch "riscv64"`,
		"-rootfs=/tmp/x":          "--rootfs takes one architecture",
		"-version=1 something.go": "no arguments",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error that says %q", args, err, says)
		}
	}
}

// packages is a made-up distribution: each program that the agent calls, and
// the licence of its package.
func packages(t *testing.T, arch string) tree {
	t.Helper()
	lib, _ := triplet(arch)
	from := tree{}
	for _, name := range programs() {
		from[name] = node{mode: 0o755, data: []byte("a program"), from: "iptables"}
	}
	for _, extension := range []string{"libxt_conntrack.so", "libebt_arp.so"} {
		from["usr/lib/"+lib+"/xtables/"+extension] = node{mode: 0o644, data: []byte("an extension"), from: "iptables"}
	}
	from["usr/lib/"+lib+"/libunused.so.1"] = node{mode: 0o644, from: "libunused1"}
	from["usr/share/doc/iptables"] = node{target: "libxtables12", from: "iptables"}
	from["usr/share/doc/libxtables12/copyright"] = node{mode: 0o644, data: []byte("GPL"), from: "libxtables12"}
	return from
}

func TestChoose(t *testing.T) {
	got, err := choose(packages(t, "arm64"), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"usr/sbin/iptables-nft-restore":                        true,
		"usr/sbin/ip6tables-legacy-save":                       true,
		"usr/sbin/iptables":                                    true,
		"usr/lib/aarch64-linux-gnu/xtables/libxt_conntrack.so": true,
		"usr/lib/aarch64-linux-gnu/xtables/libebt_arp.so":      false,
		"usr/lib/aarch64-linux-gnu/libunused.so.1":             false,
		"usr/share/doc/libxtables12/copyright":                 true,
		"usr/bin/sh":                                           false,
		"usr/share/doc/libunused1/copyright":                   false,
	} {
		if _, ok := got[name]; ok != want {
			t.Errorf("/%s is there: %v, want %v", name, ok, want)
		}
	}
	lacking := packages(t, "arm64")
	delete(lacking, "usr/sbin/nft")
	if _, err := choose(lacking, "arm64"); err == nil || !strings.Contains(err.Error(), "usr/sbin/nft") {
		t.Errorf("without nft: %v", err)
	}
}

func testParts(t *testing.T, program string) []part {
	t.Helper()
	var parts []part
	for _, arch := range []string{"amd64", "arm64"} {
		tools, err := choose(packages(t, arch), arch)
		if err != nil {
			t.Fatal(err)
		}
		p := part{arch: arch, revision: "abc", at: "2026-11-01T10:00:00Z", tools: tools, program: tree{}}
		p.program.put("usr/local/bin/switchyard", 0o755, []byte(program))
		parts = append(parts, p)
	}
	return parts
}

// TestOneDigest: the same content makes the same image, whatever the order in
// which maps are walked and the time.
func TestOneDigest(t *testing.T) {
	digest := func(program string) string {
		idx, err := index(testParts(t, program), "v1")
		if err != nil {
			t.Fatal(err)
		}
		d, err := idx.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	first := digest("a program")
	for range 5 {
		if again := digest("a program"); again != first {
			t.Fatalf("the digest was %s, and now is %s", first, again)
		}
	}
	if other := digest("another program"); other == first {
		t.Error("another program has the same digest")
	}
}

// TestWrite looks into the archive as an engine does that imports it.
func TestWrite(t *testing.T) {
	o := options{out: t.TempDir(), name: "lab.test/switchyard", version: "v1"}
	if err := write(o, testParts(t, "a program")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(o.out, "switchyard.tar"))
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, data)
	type manifest struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
			Platform    struct{ Architecture string }
		}
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	read := func(name string) (m manifest) {
		if err := json.Unmarshal(files[name], &m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return m
	}
	blob := func(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }
	top := read("index.json")
	if got := top.Manifests[0].Annotations["io.containerd.image.name"]; got != "lab.test/switchyard:v1" {
		t.Errorf("the image is called %q", got)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		of := read(blob(top.Manifests[0].Digest)).Manifests[i]
		if of.Platform.Architecture != arch {
			t.Errorf("image %d is for %q, want %s", i, of.Platform.Architecture, arch)
		}
		m := read(blob(of.Digest))
		if len(m.Layers) != 2 || files[blob(m.Layers[1].Digest)] == nil || files[blob(m.Config.Digest)] == nil {
			t.Errorf("the image for %s: %+v", arch, m)
		}
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

// TestBill: the bill names the binary's own modules, and only packages that
// something is from.
func TestBill(t *testing.T) {
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	p := testParts(t, "a program")[0]
	p.packages = []debian{{"amd64", "iptables", "1.8.9-2", "00"}, {"amd64", "libunused1", "1", "11"}}
	data, err := bill(p, binary, "v1")
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, c := range d.Packages {
		have[c.Name] = c.ExternalRefs[0].Locator
	}
	for name, want := range map[string]string{
		"iptables":   "pkg:deb/debian/iptables@1.8.9-2?arch=amd64&distro=debian-12",
		"libunused1": "",
	} {
		if have[name] != want {
			t.Errorf("%s: %q, want %q", name, have[name], want)
		}
	}
	if have["github.com/google/go-containerregistry"] == "" {
		t.Error("the binary's modules are missing")
	}
	if len(d.Relationships) != len(d.Packages) {
		t.Errorf("%d relationships of %d packages", len(d.Relationships), len(d.Packages))
	}
}

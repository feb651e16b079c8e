// Command image puts the container image together, without a container engine.
//
// The image holds the static binary and what its backends call: the programs of
// Debian packages that packages.txt pins, and the shared libraries that these
// need. Nothing in it depends on when or where it was built, so that one commit
// has one digest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() { os.Exit(status()) }

func status() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	repo, out, cache    string
	name, version       string
	architectures       []string
	rootFS              string
	pin                 bool
	revision, revisedAt string
}

func parse(args []string) (options, error) {
	var o options
	var arch string
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	fs.StringVar(&o.repo, "repo", ".", "the checkout's folder")
	fs.StringVar(&o.out, "out", "bin/image", "folder of the results")
	fs.StringVar(&o.cache, "cache", ".cache/image", "folder that keeps downloaded packages")
	fs.StringVar(&o.name, "name", "switchyard.io/switchyard", "the image's name, without a tag")
	fs.StringVar(&o.version, "version", "dev", "the image's tag, and what the binary calls itself")
	fs.StringVar(&arch, "arch", "amd64,arm64", "architectures, with commas between")
	fs.StringVar(&o.rootFS, "rootfs", "", "write the root file system of one architecture into this folder, and no image")
	fs.BoolVar(&o.pin, "pin", false, "write packages.txt anew, with the newest versions that the machine's package sources have")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("there are no arguments, just flags: %q", fs.Args())
	}
	o.architectures = strings.Split(arch, ",")
	for _, a := range o.architectures {
		if _, ok := triplet(a); !ok {
			return o, fmt.Errorf("--arch %q: want amd64, arm64 or both with a comma between", a)
		}
	}
	if o.rootFS != "" && len(o.architectures) != 1 {
		return o, errors.New("--rootfs takes one architecture: give --arch")
	}
	return o, nil
}

// triplet is the name that Debian gives to the libraries of an architecture.
func triplet(arch string) (string, bool) {
	t, ok := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[arch]
	return t, ok
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	list := filepath.Join(o.repo, "deploy", "image", "packages.txt")
	if o.pin {
		return pin(ctx, o.cache, list)
	}
	packages, err := readPackages(list)
	if err != nil {
		return err
	}
	if o.revision, o.revisedAt, err = revision(ctx, o.repo); err != nil {
		return err
	}
	var parts []part
	for _, arch := range o.architectures {
		p, err := build(ctx, o, arch, packages)
		if err != nil {
			return fmt.Errorf("building for %s: %w", arch, err)
		}
		parts = append(parts, p)
	}
	if o.rootFS != "" {
		return errors.Join(parts[0].tools.unpack(o.rootFS), parts[0].program.unpack(o.rootFS))
	}
	return write(o, parts)
}

// build makes all that is in the image of one architecture.
func build(ctx context.Context, o options, arch string, all []debian) (part, error) {
	p := part{arch: arch, revision: o.revision, at: o.revisedAt}
	for _, d := range all {
		if d.arch == arch {
			p.packages = append(p.packages, d)
		}
	}
	binary, err := compile(ctx, o, arch)
	if err != nil {
		return p, err
	}
	files, err := fetch(ctx, o.cache, arch, p.packages)
	if err != nil {
		return p, err
	}
	from := tree{}
	for i, file := range files {
		if err := from.addPackage(ctx, p.packages[i], file); err != nil {
			return p, err
		}
	}
	if p.tools, err = choose(from, arch); err != nil {
		return p, err
	}
	if p.bill, err = bill(p, binary, o.version); err != nil {
		return p, err
	}
	p.program = tree{}
	p.program.put("usr/local/bin/switchyard", 0o755, binary)
	// A DaemonSet of kubeadm's calls this name, and needs another image only.
	p.program.link("usr/local/bin/kube-proxy", "switchyard")
	p.program.put("usr/share/doc/switchyard/sbom.spdx.json", 0o644, p.bill)
	return p, nil
}

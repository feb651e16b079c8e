package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

//go:embed init.sh
var initScript string

//go:embed twice.sh
var twiceScript string

// imageConfig is what goes into an image.
type imageConfig struct {
	kernel   kernel
	cache    string
	binaries string // folder of the test binaries
	jobs     []job
	with     []string // programs of this machine beside its tools
	slow     int
}

// buildImage makes an initramfs and gives its path. It is not compressed: to
// unpack it would take the emulated machine longer than to read it.
func buildImage(ctx context.Context, c imageConfig) (string, error) {
	root, err := os.MkdirTemp(c.cache, "root-")
	if err != nil {
		return "", fmt.Errorf("making the folder of an image: %w", err)
	}
	defer func() { _ = os.RemoveAll(root) }()
	err = errors.Join(os.Chmod(root, 0o755), folders(root))
	for _, step := range []func() error{
		func() error { return writeFile(filepath.Join(root, "init"), initScript) },
		func() error { return busybox(root) },
		func() error { return copyTools(root, c.with) },
		func() error { return copyTests(ctx, root, c) },
		func() error { return copyModules(ctx, root, c.kernel) },
	} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		return "", fmt.Errorf("building the image for Linux %s: %w", c.kernel.version, err)
	}
	image, err := filepath.Abs(root + ".cpio")
	if err != nil {
		return "", err
	}
	if _, err = command(ctx, root, "sh", "-c", "find . | cpio -o -H newc -R 0:0 --quiet >"+quote(image)); err != nil {
		return "", err
	}
	return image, nil
}

// folders makes those that the machine needs, with /usr merged as on Debian.
func folders(root string) error {
	for _, d := range []string{
		"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "busybox", "proc", "sys", "dev", "tmp", "run", "root", "etc",
		"tests", "src", "var/lib", "var/run",
	} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return fmt.Errorf("making a folder of the image: %w", err)
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return fmt.Errorf("making a link of the image: %w", err)
		}
	}
	return nil
}

// busybox is all small programs that copyTools has not. It is not the shell:
// its own prefers its own programs to those in PATH.
func busybox(root string) error {
	for _, at := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		err := copyFile(at, filepath.Join(root, "usr/bin/busybox"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		return err
	}
	return errors.New("there is no busybox: install busybox-static")
}

// copyTests copies the test binaries and the source, where tests find their
// data, and writes the script that runs them.
func copyTests(ctx context.Context, root string, c imageConfig) error {
	for _, j := range c.jobs {
		if j.command != "" {
			continue
		}
		if err := copyFile(filepath.Join(c.binaries, j.name()), filepath.Join(root, "tests", j.name())); err != nil {
			return err
		}
	}
	files, err := command(ctx, "", "git", "ls-files", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(files) {
		to := filepath.Join(root, "src", f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("making a folder of the image: %w", err)
		}
		if err := copyFile(f, to); err != nil && !errors.Is(err, os.ErrNotExist) { // removed and not yet committed
			return err
		}
	}
	text := "export REQUIRE_KERNEL=1 " + slowVariable + "=" + strconv.Itoa(c.slow) + "\n" + script(c.jobs) + "echo " + quote(endMark) + "\n"
	return errors.Join(writeFile(filepath.Join(root, "tests", "twice"), twiceScript), writeFile(filepath.Join(root, "tests", "script"), text))
}

// copyModules copies the kernel's modules that may be asked for, and lists
// them for modprobe.
func copyModules(ctx context.Context, root string, k kernel) error {
	from := filepath.Join(k.root, "lib/modules", k.version)
	dep, err := os.ReadFile(filepath.Join(from, "modules.dep"))
	if err != nil {
		return fmt.Errorf("reading which modules there are: %w", err)
	}
	modules, err := modulesOf(string(dep), moduleFolders())
	if err != nil {
		return err
	}
	to := filepath.Join(root, "usr/lib/modules", k.version)
	for _, m := range append(modules, "modules.builtin", "modules.builtin.modinfo", "modules.order") {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, m)), 0o755); err != nil {
			return fmt.Errorf("making a folder of the image: %w", err)
		}
		if err := copyFile(filepath.Join(from, m), filepath.Join(to, m)); err != nil {
			return err
		}
	}
	_, err = command(ctx, "", "depmod", "-b", root, k.version)
	return err
}

// copyFile copies a file with its mode.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return nil
}

// writeFile writes a program.
func writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		return fmt.Errorf("writing a file of the image: %w", err)
	}
	return nil
}

// Package sysctl reads and writes kernel settings.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Tree is a directory of kernel settings, one file each. Names in it are paths,
// such as "net/ipv4/ip_forward". Settings below net/ are those of the calling
// thread's network namespace.
type Tree string

// The kernel's trees.
const (
	Proc   Tree = "/proc/sys"
	Module Tree = "/sys/module"
)

// hostProc is where a container that is not privileged has the settings of the
// network a second time, to be written: its own /proc/sys is read-only.
const hostProc Tree = "/host/proc/sys"

// Get reads a setting, without the white space around it. The
// error wraps fs.ErrNotExist where this kernel does not have it.
func (t Tree) Get(name string) (string, error) {
	b, err := os.ReadFile(t.path(name))
	if err != nil {
		return "", fmt.Errorf("reading the kernel setting %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Int reads a setting that is a whole number.
func (t Tree) Int(name string) (int, error) {
	s, err := t.Get(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("kernel setting %s: %w", name, err)
	}
	return n, nil
}

// Set gives a setting a value where it has another. It writes nothing
// otherwise, so that read-only trees that are right already are no error.
func (t Tree) Set(name, value string) error {
	have, err := t.Get(name)
	if err != nil || have == value {
		return err
	}
	err = t.write(name, value)
	if t == Proc && errors.Is(err, syscall.EROFS) {
		if e := hostProc.write(name, value); !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("setting the kernel setting %s from %s to %s: %w", name, have, value, err)
	}
	return nil
}

func (t Tree) write(name, value string) error {
	// No O_CREATE: a name that the kernel does not have must stay an error.
	f, err := os.OpenFile(t.path(name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// SetInt is Set with a whole number.
func (t Tree) SetInt(name string, value int) error { return t.Set(name, strconv.Itoa(value)) }

// Raise gives a setting a value where it has a smaller one.
func (t Tree) Raise(name string, value int) error {
	have, err := t.Int(name)
	if err != nil || have >= value {
		return err
	}
	return t.SetInt(name, value)
}

func (t Tree) path(name string) string { return filepath.Join(string(t), filepath.FromSlash(name)) }

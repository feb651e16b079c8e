// Package cgroup gives each node of the lab a control group of its own.
//
// The same path is made in the cgroup v2 tree and in every cgroup v1 controller
// that the machine has mounted, so that kubelet finds its root in all of them.
// Everything that runs on a node is below the node's v2 group: that is how a
// backend's cgroup hooks reach this node only, and how the lab finds every
// process that it has to end.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Tree is where the machine mounts its cgroup hierarchies.
type Tree struct {
	V2 string   // mount point of cgroup v2
	V1 []string // mount points of the v1 controllers; none where all is v2
}

// Find reads the mounts of this process.
func Find() (Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Tree{}, fmt.Errorf("finding the cgroup mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parse(f)
}

func parse(mountinfo io.Reader) (Tree, error) {
	var t Tree
	scan := bufio.NewScanner(mountinfo)
	for scan.Scan() {
		// ID parent major:minor root POINT options [tags] - TYPE source options
		left, right, ok := strings.Cut(scan.Text(), " - ")
		at, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(at) < 5 || len(kind) < 1 {
			continue
		}
		switch point := at[4]; kind[0] {
		case "cgroup2":
			if t.V2 == "" {
				t.V2 = point
			}
		case "cgroup":
			t.V1 = append(t.V1, point)
		}
	}
	if err := scan.Err(); err != nil {
		return Tree{}, fmt.Errorf("finding the cgroup mounts: %w", err)
	}
	if t.V2 == "" {
		return Tree{}, errors.New("finding the cgroup mounts: cgroup v2 is not mounted")
	}
	return t, nil
}

// Path is the v2 folder of group.
func (t Tree) Path(group string) string { return filepath.Join(t.V2, group) }

// Create makes group, whose parent exists, in every hierarchy, and hands down
// to it what its parent may use.
func (t Tree) Create(group string) error {
	for _, mount := range t.V1 {
		dir := filepath.Join(mount, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("creating cgroup %s: %w", group, err)
		}
		// A new v1 cpuset is empty, and nothing can run in it.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(dir, name); err != nil {
				return fmt.Errorf("creating cgroup %s: %w", group, err)
			}
		}
	}
	dir := t.Path(group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating cgroup %s: %w", group, err)
	}
	if len(t.V1) > 0 {
		return nil // the controllers are v1's; v2 only tells the nodes apart
	}
	return delegate(filepath.Dir(dir))
}

// inherit copies a v1 setting from the parent group where the controller has it.
func inherit(dir, name string) error {
	value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), value, 0o644)
}

// delegate lets the children of dir use all controllers that dir has.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("delegating the controllers of %s: %w", dir, err)
	}
	for _, name := range strings.Fields(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
			return fmt.Errorf("delegating controller %s of %s: %w", name, dir, err)
		}
	}
	return nil
}

// Favor gives group, whose parent is the root, eight times the share of the
// machine's processors that one process or group gets by default. Otherwise a
// compiler that runs beside the lab leaves its servers too little to answer in
// time. It changes nothing where the machine has the processors to spare.
func (t Tree) Favor(group string) error {
	settings := map[string]string{filepath.Join(t.Path(group), "cpu.weight"): "800"} // default 100
	for _, mount := range t.V1 {
		settings[filepath.Join(mount, group, "cpu.shares")] = "8192" // default 1024
	}
	for file, value := range settings {
		// Each file is in one hierarchy only, the one that has the controller.
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("favor cgroup %s: %w", group, err)
		}
	}
	return nil
}

// V1Paths are the folders of group in the v1 hierarchies; none where all is v2.
func (t Tree) V1Paths(group string) []string {
	var all []string
	for _, mount := range t.V1 {
		all = append(all, filepath.Join(mount, group))
	}
	return all
}

// Join moves the process into the groups that are these folders. It is no error
// if the process has ended.
func Join(pid int, folders ...string) error {
	for _, dir := range folders {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("putting process %d into cgroup %s: %w", pid, dir, err)
		}
	}
	return nil
}

// PIDs lists the processes in group and in all groups below it.
func (t Tree) PIDs(group string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(t.Path(group), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // ended while we looked
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
			return err
		}
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the processes of cgroup %s: %w", group, err)
	}
	return pids, nil
}

// Kill ends all processes of group and below. What a process forks meanwhile is
// in the group too and is found in the next round.
func (t Tree) Kill(group string, within time.Duration) error {
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		pids, err := t.PIDs(group)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("empty cgroup %s: processes %v still run after %v", group, pids, within)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // seen again next round if it failed
		}
	}
}

// Remove deletes group and all below it from every hierarchy. The group must
// hold no process. It is no error where it does not exist.
func (t Tree) Remove(group string) error {
	var errs []error
	for _, mount := range append([]string{t.V2}, t.V1...) {
		errs = append(errs, removeAll(filepath.Join(mount, group)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing cgroup %s: %w", group, err)
	}
	return nil
}

// removeAll removes the deepest folders first: a cgroup's files cannot be
// removed and go with their folder.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// A group stays busy for a moment after its last process has ended.
	for range 100 {
		err = syscall.Rmdir(dir)
		if !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

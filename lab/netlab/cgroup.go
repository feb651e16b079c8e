package netlab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot finds where cgroup v2 is mounted: on hybrid hosts that is not
// /sys/fs/cgroup. "": nowhere.
func cgroupRoot() string {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	return ""
}

// makeLabCgroup makes the cgroup of a lab; "": it cannot be made here, and the
// hosts stay in their parent's cgroup.
func makeLabCgroup(name string, log *slog.Logger) string {
	root := cgroupRoot()
	if root == "" {
		log.Info("no cgroup v2 is mounted: the lab's nodes have no cgroups of their own")
		return ""
	}
	path := filepath.Join(root, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		log.Info("the lab's nodes have no cgroups of their own", "error", err)
		return ""
	}
	return path
}

func subCgroup(parent, name string) string {
	if parent == "" {
		return ""
	}
	return filepath.Join(parent, name)
}

// openCgroup makes a cgroup if need be and opens it.
func openCgroup(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("making cgroup: %w", err)
	}
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup: %w", err)
	}
	return f, nil
}

// removeCgroup removes a cgroup and those below it, and ends what is still in
// them: commands that somebody started on a host and forgot. A process that was
// just killed may take a moment to leave.
func removeCgroup(path string) error {
	if path == "" {
		return nil
	}
	// Kernels before 5.14 have no such file: they say EBUSY below.
	_ = os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0o644)
	var err error
	for range 50 {
		if err = removeCgroupTree(path); err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func removeCgroupTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing cgroup: %w", err)
	}
	return nil
}

// removeLeftoverCgroups removes the cgroups of labs whose process is gone.
func removeLeftoverCgroups(log *slog.Logger) {
	root := cgroupRoot()
	if root == "" {
		return
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !leftover(e.Name()) {
			continue
		}
		if err := removeCgroupTree(filepath.Join(root, e.Name())); err != nil {
			log.Warn("removing a leftover cgroup", "error", err)
		}
	}
}

package terminate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// mostNamespaces bounds how many network namespaces one pass visits.
const mostNamespaces = 16384

// namespaces are files that stand for the network namespaces of the processes
// below a cgroup, each once. Processes may end meanwhile.
func namespaces(cgroup string) ([]string, error) {
	seen := map[string]bool{}
	var files []string
	err := filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // a cgroup that ended
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		list, err := os.ReadFile(path)
		if err != nil {
			return nil // it ended, or holds threads: its processes stand further up
		}
		for pid := range strings.FieldsSeq(string(list)) {
			file := filepath.Join("/proc", pid, "ns/net")
			name, err := os.Readlink(file)
			if err != nil || seen[name] {
				continue
			}
			seen[name] = true
			files = append(files, file)
			if len(files) > mostNamespaces {
				return fmt.Errorf("more than %d network namespaces: the sockets of some are left alone", mostNamespaces)
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("looking for network namespaces below cgroup %s: %w", cgroup, err)
	}
	return files, err
}

// inEach calls f in this network namespace and in each of those given.
func inEach(files []string, f func() error) error {
	return netns.OnThread(func() error {
		errs := []error{f()}
		own, _ := os.Readlink("/proc/thread-self/ns/net")
		for _, file := range files {
			if name, err := os.Readlink(file); err != nil || name == own {
				continue // the process has ended, or this was the first
			}
			errs = append(errs, in(file, f))
		}
		return errors.Join(errs...)
	})
}

func in(file string, f func() error) error {
	ns, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the process has ended
	}
	if err != nil {
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Enter(ns); err != nil {
		return err
	}
	return f()
}

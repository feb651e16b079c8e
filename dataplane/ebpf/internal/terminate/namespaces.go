package terminate

import (
	"errors"
	"fmt"
	"os"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/cgroups"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// mostNamespaces bounds how many network namespaces one pass visits.
const mostNamespaces = 16384

// namespaces are files that stand for the network namespaces of the processes
// below a cgroup, each once. Processes may end meanwhile. If there are too many,
// the error says so, and some are given.
func namespaces(cgroup string) ([]string, error) {
	found, err := cgroups.Search(cgroup, nil)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, pid := range found.Processes {
		if len(files) == mostNamespaces {
			found.Whole = false
			break
		}
		files = append(files, cgroups.NamespaceFile(pid))
	}
	if !found.Whole {
		return files, fmt.Errorf("too many processes or network namespaces below cgroup %s: the sockets of some are left alone", cgroup)
	}
	return files, nil
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

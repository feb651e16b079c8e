// Package cgroups finds the network namespaces of the processes below a cgroup.
//
// Whoever is in a pod can start very many processes, and make a network namespace
// for each. So each cgroup has a share of the work, and the whole has a bound.
package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Bounds of one search.
const (
	mostNamespaces = 16      // of one cgroup: a pod has one
	mostProcesses  = 1024    // of one cgroup that are asked for their namespace
	mostAsked      = 1 << 16 // processes of all cgroups
	mostCgroups    = 1 << 14
)

// Found is what a search found.
type Found struct {
	// Processes has one process of each network namespace, by the namespace's name.
	Processes map[string]string
	// Whole is false if the search ended at a bound of all cgroups.
	Whole bool
}

// Search looks for the network namespaces of the processes below a cgroup. known
// has processes that were in a namespace before, and afterwards those that are now:
// nobody asks them again. Nil means that none is known.
func Search(cgroup string, known map[string]string) (Found, error) {
	s := search{found: map[string]string{}, known: known, pids: map[string]string{}}
	err := filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // a cgroup that ended
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		if s.cgroups == mostCgroups || s.asked >= mostAsked {
			s.cut = true
			return fs.SkipAll
		}
		s.cgroups++
		s.look(path)
		return nil
	})
	clear(known)
	if known != nil {
		for pid, name := range s.pids {
			known[pid] = name
		}
	}
	if err != nil {
		return Found{}, fmt.Errorf("looking for processes below cgroup %s: %w", cgroup, err)
	}
	return Found{Processes: s.found, Whole: !s.cut}, nil
}

// search is one search under way.
type search struct {
	found   map[string]string // process by namespace
	known   map[string]string // namespace by process, before
	pids    map[string]string // and now
	cgroups int
	asked   int // processes
	cut     bool
}

// look looks at the processes of one cgroup. If the list cannot be read, the cgroup
// ended, or it holds threads: their processes are listed further up.
func (s *search) look(list string) {
	file, err := os.Open(list)
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }()
	namespaces := 0
	lines := bufio.NewScanner(file)
	for n := 0; n < mostProcesses && lines.Scan(); n++ {
		pid := lines.Text()
		name := s.known[pid]
		if name == "" {
			s.asked++
			name = NamespaceOf(pid)
		}
		if name == "" {
			continue
		}
		s.pids[pid] = name
		if s.found[name] != "" {
			continue
		}
		if namespaces++; namespaces <= mostNamespaces {
			s.found[name] = pid
		}
	}
}

// NamespaceOf names the network namespace of a process; "": it has ended, or may
// not be asked.
func NamespaceOf(pid string) string {
	name, err := os.Readlink(NamespaceFile(pid))
	if err != nil {
		return ""
	}
	return name
}

// NamespaceFile returns the file that stands for the network namespace of a process.
func NamespaceFile(pid string) string { return filepath.Join("/proc", pid, "ns/net") }

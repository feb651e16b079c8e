package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// mostPerCgroup bounds how many network namespaces of one cgroup are looked
// into: a pod has one.
const mostPerCgroup = 16

// processes gives, for each network namespace of the processes below a cgroup,
// one process, by the name of the namespace. known are processes that were in a
// namespace before: nobody asks them again.
func processes(cgroup string, known map[string]string) (map[string]string, error) {
	found, pids := map[string]string{}, map[string]string{}
	err := filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // a cgroup that ended
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		list, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // it ended, or holds threads: its processes are listed further up
		}
		fresh := 0
		for pid := range strings.FieldsSeq(string(list)) {
			name := known[pid]
			if name == "" {
				name = namespaceOf(pid)
			}
			if name == "" {
				continue
			}
			pids[pid] = name
			if found[name] != "" {
				continue
			}
			if fresh++; fresh <= mostPerCgroup {
				found[name] = pid
			}
		}
		return nil
	})
	clear(known)
	for pid, name := range pids {
		known[pid] = name
	}
	if err != nil {
		return nil, fmt.Errorf("looking for processes below cgroup %s: %w", cgroup, err)
	}
	return found, nil
}

// namespaceOf names the network namespace of a process; "": it has ended, or may
// not be asked.
func namespaceOf(pid string) string {
	name, err := os.Readlink(namespaceFile(pid))
	if err != nil {
		return ""
	}
	return name
}

func namespaceFile(pid string) string { return filepath.Join("/proc", pid, "ns/net") }

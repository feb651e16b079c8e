package programs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// CgroupRoot returns the cgroup v2 directory at or below dir; "": wherever cgroup v2
// is mounted. On hybrid hosts that is not /sys/fs/cgroup itself but a directory
// in it.
func CgroupRoot(dir string) (string, error) {
	if dir == "" {
		return findCgroupRoot()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("looking at cgroup %s: %w", dir, err)
	}
	if uint32(st.Type) == unix.CGROUP2_SUPER_MAGIC {
		return dir, nil
	}
	mounted, err := CgroupMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounted {
		if strings.HasPrefix(m, strings.TrimSuffix(dir, "/")+"/") {
			return m, nil
		}
	}
	return "", fmt.Errorf("%s is no cgroup v2 directory and has none below it: %w", dir, dataplane.ErrUnsupported)
}

// findCgroupRoot returns where cgroup v2 is mounted.
func findCgroupRoot() (string, error) {
	mounted, err := CgroupMounts()
	if err != nil {
		return "", err
	}
	if len(mounted) == 0 {
		return "", fmt.Errorf("no cgroup v2 is mounted, which socket load balancing needs: %w", dataplane.ErrUnsupported)
	}
	return mounted[0], nil
}

// CgroupMounts returns the places where cgroup v2 is mounted.
func CgroupMounts() ([]string, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, fmt.Errorf("looking for cgroup v2: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			out = append(out, fields[1])
		}
	}
	return out, nil
}

// firstCgroups names the machine's first cgroup namespace: the kernel gives it a
// number of its own (PROC_CGROUP_INIT_INO).
const firstCgroups = "cgroup:[4026531835]"

// NarrowCgroup says what it means that cgroup v2 was found inside a cgroup namespace
// of this process's own, as a pod has one; "": it is in the machine's first one.
func NarrowCgroup(root string) string {
	name, err := os.Readlink("/proc/thread-self/ns/cgroup")
	if err != nil || name == firstCgroups {
		return ""
	}
	return fmt.Sprintf("just sockets of processes below %s are translated: the agent is in a cgroup namespace of its own, as in a pod; "+
		"--ebpf-cgroup-root names the host's /sys/fs/cgroup, mounted there", root)
}

// cgroupID returns the number by which the kernel knows a cgroup.
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("finding cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

// Not in package unix.
const soNetnsCookie = 71

// NetnsCookie returns the number of this thread's network namespace that no other
// has; 0 where the kernel (before 5.14) does not tell: then it is taken to be
// the first one.
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("asking for the network namespace's cookie: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, soNetnsCookie)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("asking for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

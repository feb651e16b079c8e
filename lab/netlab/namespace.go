package netlab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where named network namespaces are, as iproute2 has it.
const namespaceDir = "/run/netns"

// namePrefix starts the name of every lab: "sylab-PID-START-N".
const namePrefix = "sylab-"

// labName is the name of the n-th lab of a process. The time when the process
// started tells it from a later one with the same pid.
func labName(pid, n int) (string, error) {
	start, err := processStart(pid)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%d-%s-%d", namePrefix, pid, strconv.FormatUint(start, 36), n), nil
}

// leftover tells whether a namespace, cgroup or directory of pins of this name belongs to a lab
// whose process is gone.
func leftover(name string) bool {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "-")
	if len(parts) < 3 {
		return false
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return false
	}
	start, err := strconv.ParseUint(parts[1], 36, 64)
	if err != nil {
		return false
	}
	now, err := processStart(pid)
	return errors.Is(err, os.ErrNotExist) || err == nil && now != start
}

// processStart is when a process started, in clock ticks since boot.
func processStart(pid int) (uint64, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, fmt.Errorf("looking for process %d: %w", pid, err)
	}
	stat, err := p.Stat()
	if err != nil {
		return 0, fmt.Errorf("reading when process %d started: %w", pid, err)
	}
	return stat.Starttime, nil
}

// removeLeftovers removes the namespaces, cgroups and pins of labs whose process
// is gone. Their host processes have ended by themselves when it did.
func removeLeftovers(log *slog.Logger) error {
	entries, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking for leftover namespaces: %w", err)
	}
	for _, e := range entries {
		if !leftover(e.Name()) {
			continue
		}
		log.Info("removing the namespace of a lab whose process is gone", "namespace", e.Name())
		// Another process may be doing the same: what is gone is no error.
		if err := removeNamespace(e.Name()); err != nil {
			log.Warn("removing what a killed lab left", "error", err)
		}
	}
	removeLeftoverCgroups(log)
	removeLeftoverPins(log)
	return nil
}

// ShareNames makes the folder of names a mount of its own, shared with other
// mount namespaces, as iproute2 does when it first adds a name. If it did so after
// us, it would cover the mounts of our names, and nobody could remove them.
func ShareNames() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return fmt.Errorf("making the folder of network namespaces: %w", err)
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return fmt.Errorf("opening the folder of network namespaces: %w", err)
	}
	defer func() { _ = dir.Close() }() // and unlock it
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", namespaceDir, err)
	}
	share := func() error { return unix.Mount("", namespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err = unix.Mount(namespaceDir, namespaceDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("sharing %s: %w", namespaceDir, err)
	}
	return nil
}

// makeNamespace makes a named network namespace.
func makeNamespace(name string) (netns.NsHandle, error) {
	handle := netns.None()
	err := onThread(netns.None(), func() error {
		var err error
		handle, err = netns.NewNamed(name) // moves this thread there; onThread takes it back
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("making network namespace %s: %w", name, err)
	}
	return handle, nil
}

// removeNamespace removes a namespace's name; the namespace itself goes with
// the last process in it. What is gone already is no error.
func removeNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	// EINVAL: a file that nothing is mounted on, from a run that was killed in between.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing network namespace %s: %w", name, err)
	}
	return nil
}

// onThread runs f on an OS thread of its own that is in ns (None: stays where
// it is), and takes the thread back to where it was. A thread that cannot be
// taken back is thrown away.
func onThread(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // without Unlock the thread ends with this goroutine
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("finding the current network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- fmt.Errorf("entering a network namespace: %w", err)
				return
			}
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// sysctl sets a kernel parameter in the current thread's network namespace.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

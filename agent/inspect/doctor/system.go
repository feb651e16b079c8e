package doctor

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// System is where to look; tests look elsewhere.
type System struct {
	Root string // of /proc and /sys; "" is the real one
	// Run gives what a command writes to stdout.
	Run func(ctx context.Context, name string, args ...string) (string, error)
	// KubeProxy returns what a kube-proxy left in the kernel; nil: nobody knows.
	KubeProxy func(context.Context) ([]string, error)
	// Firewall tells which rules drop what nobody accepts; nil: nobody knows.
	Firewall func() ([]string, error)
}

// commandTime is how long a command may take.
const commandTime = 10 * time.Second

// Host is this machine.
func Host() System {
	return System{
		Run: func(ctx context.Context, name string, args ...string) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, commandTime)
			defer cancel()
			out, err := exec.CommandContext(ctx, name, args...).Output()
			return string(out), err
		},
	}
}

// Read returns what is in a file, without the white space around it.
func (s System) Read(path string) (string, error) {
	b, err := os.ReadFile(s.Root + path)
	return strings.TrimSpace(string(b)), err
}

func (s System) kernel() string {
	release, err := s.Read("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return release
}

// version is the kernel's, as far as it can be told.
func (s System) version() (major, minor int) {
	parts := strings.FieldsFunc(s.kernel(), func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) > 1 {
		major, _ = strconv.Atoi(parts[0])
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

// mounts are the mount points of a type of file system.
func (s System) mounts(kind string) []string {
	text, err := s.Read("/proc/mounts")
	if err != nil {
		return nil
	}
	var at []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == kind {
			at = append(at, f[1])
		}
	}
	return at
}

package result

import (
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the numbers come from.
type Machine struct {
	Kernel, CPU, OS string
	CPUs            int
	MemoryGB        float64
	Versions        map[string]string // of programs
	Commit          string
}

// ThisMachine looks at where this process runs; programs are asked for their
// versions by these command lines.
func ThisMachine(programs map[string][]string) Machine {
	m := Machine{CPUs: runtime.NumCPU(), CPU: value("/proc/cpuinfo", "model name", ":"), OS: strings.Trim(value("/etc/os-release", "PRETTY_NAME", "="), `"`), Versions: map[string]string{"go": runtime.Version()}}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryGB = float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	}
	for name, line := range programs {
		out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
		if err != nil {
			continue // it tells no version
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		m.Versions[name] = first
	}
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	return m
}

// value is what a file says after a name.
func value(file, name, separator string) string {
	b, _ := os.ReadFile(file) // a machine without it says nothing
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// System is where to look; tests look elsewhere.
type System struct {
	Root string // of /proc and /sys; "" is the real one
	// Run gives what a command writes to stdout.
	Run     func(ctx context.Context, name string, args ...string) (string, error)
	Devices func() ([]string, error) // names of network devices
	// CgroupPrograms are the names of the programs that are attached to a cgroup
	// where sockets connect or send.
	CgroupPrograms func(cgroup string) ([]string, error)
	// Pods tells how many pods have nothing in the way of the translation of their
	// sockets, and how many have, by what; nil: nobody knows.
	Pods func() (translated int, left map[string]int, err error)
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
		Devices: func() ([]string, error) {
			all, err := net.Interfaces()
			var names []string
			for _, i := range all {
				names = append(names, i.Name)
			}
			return names, err
		},
		CgroupPrograms: cgroupPrograms,
	}
}

// cgroupPrograms asks the kernel.
func cgroupPrograms(cgroup string) ([]string, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", cgroup, err)
	}
	defer func() { _ = dir.Close() }()
	var names []string
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	} {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: at})
		if errors.Is(err, link.ErrNotSupported) {
			continue
		}
		if err != nil {
			return names, fmt.Errorf("asking for the programs of cgroup %s: %w", cgroup, err)
		}
		for _, p := range found.Programs {
			if name := programName(p.ID); name != "" {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// programName is a program's name; "": it is gone.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

func (s System) read(path string) (string, error) {
	b, err := os.ReadFile(s.Root + path)
	return strings.TrimSpace(string(b)), err
}

func (s System) kernel() string {
	release, err := s.read("/proc/sys/kernel/osrelease")
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
	text, err := s.read("/proc/mounts")
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

// sysAdmin is what is lost without a capability that the agent can do without.
const sysAdmin = "without it no pod's network namespace can be looked into, and --socket-lb=auto leaves the sockets of pods to packets"

func (s System) privileges(context.Context) []Check {
	status, err := s.read("/proc/self/status")
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(status, "CapEff:")
	word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(word), 16, 64)
	if err != nil {
		return nil
	}
	var out []Check
	for _, c := range []struct {
		bit   int // as the kernel numbers them
		name  string
		isFor []string
		need  string
	}{
		{12, "CAP_NET_ADMIN", nil, "nothing can be programmed without it"},
		{13, "CAP_NET_RAW", []string{forIPTables}, "iptables needs it"},
		{39, "CAP_BPF", []string{forEBPF}, "loading programs needs it"},
		{38, "CAP_PERFMON", []string{forEBPF}, "loading programs needs it"},
		{21, "CAP_SYS_ADMIN", []string{forEBPF}, sysAdmin},
		{19, "CAP_SYS_PTRACE", []string{forEBPF}, sysAdmin},
	} {
		check := Check{Group: groupPrivileges, Name: c.name, State: OK, Found: "yes", For: c.isFor}
		if have&(1<<c.bit) == 0 {
			check.State, check.Found, check.Advice = Problem, "no", c.need+": run as root, or give the container this capability"
			if c.need == sysAdmin {
				check.State = Note
			}
		}
		out = append(out, check)
	}
	return out
}

func (s System) kernelFeatures(context.Context) []Check {
	major, minor := s.version()
	atLeast := func(a, b int) bool { return major > a || major == a && minor >= b }
	version := Check{Group: groupKernel, Name: "version", State: OK, Found: s.kernel(), For: []string{forEBPF}}
	switch {
	case !atLeast(5, 10):
		version.State, version.Advice = Problem, "the eBPF backend needs 5.10 or newer; the others work"
	case !atLeast(5, 14):
		version.State, version.Advice = Note, "before 5.14 a pod's network namespace cannot be recognised: --socket-lb=auto translates sockets of the node alone"
	}
	out := []Check{version, s.mounted("cgroup v2", "cgroup2", "", "socket load balancing needs it: mount -t cgroup2 none /sys/fs/cgroup/unified (systemd does so), or --socket-lb=off"),
		s.mounted("bpf file system", "bpf", "/sys/fs/bpf", "programs and maps are pinned there: mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's)")}
	conntrack := Check{Group: groupKernel, Name: "conntrack", State: OK, For: []string{forNFTables, forIPTables, forIPVS}}
	if limit, err := s.read("/proc/sys/net/netfilter/nf_conntrack_max"); err == nil {
		count, _ := s.read("/proc/sys/net/netfilter/nf_conntrack_count")
		conntrack.Found = fmt.Sprintf("%s of %s entries", count, limit)
	} else {
		conntrack.State, conntrack.Found = Note, "not there yet"
		conntrack.Advice = "it comes with the first rule that needs it, where the kernel has it: modprobe nf_conntrack"
	}
	return append(out, conntrack, s.ipvs())
}

func (s System) mounted(name, kind, at, advice string) Check {
	c := Check{Group: groupKernel, Name: name, State: OK, For: []string{forEBPF}}
	where := s.mounts(kind)
	for _, m := range where {
		if at == "" || m == at {
			c.Found = "at " + m
			return c
		}
	}
	c.State, c.Found, c.Advice = Problem, "not mounted", advice
	if len(where) > 0 {
		c.Found = "not at " + at + ", but at " + strings.Join(where, ", ")
	}
	return c
}

func (s System) ipvs() Check {
	c := Check{Group: groupKernel, Name: "IPVS", State: OK, For: []string{forIPVS}}
	release := s.kernel()
	switch {
	case s.exists("/proc/net/ip_vs"):
		c.Found = "there"
	case s.modules(release, "modules.builtin", "/ip_vs.ko"):
		c.Found = "built in"
	case s.modules(release, "modules.dep", "/ip_vs.ko"):
		c.Found = "a module that is not loaded yet"
	default:
		c.State, c.Found, c.Advice = Note, "this kernel has none, as far as can be seen", "the IPVS backend needs a kernel with CONFIG_IP_VS"
	}
	return c
}

func (s System) exists(path string) bool {
	_, err := os.Stat(s.Root + path)
	return err == nil
}

// modules tells whether a list of the kernel's modules has one.
func (s System) modules(release, list, module string) bool {
	text, err := s.read(filepath.Join("/lib/modules", release, list))
	return err == nil && strings.Contains(text, module)
}

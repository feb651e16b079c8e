package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// needs returns what the translation of sockets needs of the machine.
func needs(o Options) []dataplane.Need {
	const programs = "loading programs needs it"
	const namespaces = "without it no pod's network namespace can be looked into, and --socket-lb=auto leaves the sockets of pods to packets"
	return []dataplane.Need{
		{Kind: dataplane.Capability, Name: "CAP_BPF", Bit: unix.CAP_BPF, Lack: dataplane.Serious, Advice: programs},
		{Kind: dataplane.Capability, Name: "CAP_PERFMON", Bit: unix.CAP_PERFMON, Lack: dataplane.Serious, Advice: programs},
		{Kind: dataplane.Capability, Name: "CAP_SYS_ADMIN", Bit: unix.CAP_SYS_ADMIN, Lack: dataplane.Notable, Advice: namespaces},
		{Kind: dataplane.Capability, Name: "CAP_SYS_PTRACE", Bit: unix.CAP_SYS_PTRACE, Lack: dataplane.Notable, Advice: namespaces},
		{Kind: dataplane.Version, Name: "version", Major: 5, Minor: 10, Lack: dataplane.Serious, Advice: "the eBPF backend needs 5.10 or newer; the others work"},
		{Kind: dataplane.Version, Name: "version", Major: 5, Minor: 14, Lack: dataplane.Notable,
			Advice: "before 5.14 a pod's network namespace cannot be recognised: --socket-lb=auto translates sockets of the node alone"},
		{Kind: dataplane.Mount, Name: "cgroup v2", Type: "cgroup2", Lack: dataplane.Serious,
			Advice: "socket load balancing needs it: mount -t cgroup2 none /sys/fs/cgroup/unified (systemd does so), or --socket-lb=off"},
		{Kind: dataplane.Mount, Name: "bpf file system", Type: "bpf", At: "/sys/fs/bpf", Lack: dataplane.Serious,
			Advice: "programs and maps are pinned there: mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's)"},
		{Kind: dataplane.Rival, Name: "socket programs", Look: lookAtPrograms},
		{Kind: dataplane.Neighbour, Name: "pods", Look: func(context.Context, dataplane.Machine) (dataplane.Finding, bool) {
			return judgePods(SurveyPods(o.CgroupRoot)), true
		}},
	}
}

// judgePods says which way the connections of pods take.
func judgePods(translated int, left map[string]int, err error) dataplane.Finding {
	if err != nil {
		return dataplane.Finding{Lack: dataplane.Notable, Found: "could not be looked into: " + err.Error(), Advice: "--socket-lb=auto leaves the sockets of pods to packets"}
	}
	words := []string{fmt.Sprintf("sockets of %d are translated", translated)}
	for _, why := range slices.Sorted(maps.Keys(left)) {
		words = append(words, fmt.Sprintf("%d left to packets: %s", left[why], why))
	}
	f := dataplane.Finding{Found: strings.Join(words, "; ")}
	if len(left) > 0 {
		f.Lack = dataplane.Notable
		f.Advice = "pods that translate their own connections (a service mesh) see Services' addresses; --socket-lb=all would pass their rules by"
	}
	return f
}

// lookAtPrograms looks for other programs that see sockets as they connect.
func lookAtPrograms(context.Context, dataplane.Machine) (dataplane.Finding, bool) {
	mounted, err := programs.CgroupMounts()
	if err != nil || len(mounted) == 0 {
		return dataplane.Finding{}, false
	}
	names, err := cgroupPrograms(mounted[0])
	if err != nil {
		return dataplane.Finding{Lack: dataplane.Notable, Found: "could not be listed: " + err.Error()}, true
	}
	return judgePrograms(names, mounted[0])
}

// judgePrograms says whose programs are at the sockets of a cgroup, but for ours.
func judgePrograms(names []string, cgroup string) (f dataplane.Finding, ok bool) {
	var others []string
	for _, n := range names {
		if !strings.HasPrefix(n, "sock_") && !slices.Contains(others, n) { // ours
			others = append(others, n)
		}
	}
	if len(others) == 0 {
		return f, false
	}
	slices.Sort(others)
	f = dataplane.Finding{
		Lack: dataplane.Notable, Found: strings.Join(others, ", ") + " on cgroup " + cgroup,
		Advice: "another program sees sockets as they connect; if it balances Services, one of the two must go",
	}
	for prefix, name := range map[string]string{"cil_": "Cilium", "calico_": "Calico", "cali_": "Calico"} {
		if slices.ContainsFunc(others, func(n string) bool { return strings.HasPrefix(n, prefix) }) {
			f.Lack = dataplane.Serious
			f.Advice = name + " balances Services at sockets, before any backend of ours: switch its kube-proxy replacement off"
		}
	}
	return f, true
}

// cgroupPrograms returns the names of the programs that are attached to a cgroup
// where sockets connect or send.
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

// programName returns a program's name; "": it is gone.
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

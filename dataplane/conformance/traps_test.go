package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Faults of system calls, for backends that run no commands: the agent gets a
// seccomp filter, by which the kernel asks this process about each call that may
// change its state, and waits. The calls of all the agent's threads are counted
// as one row.

// callFaults is that, as the test sees it.
type callFaults struct {
	mu    sync.Mutex
	what  string // the plan
	at    int
	calls []string // since the plan was made
}

func newCallFaults(*run) faults { return &callFaults{} }

func (f *callFaults) restart(r *run, node string) *agent {
	r.Helper()
	a := r.restart(node)
	var theirs int
	r.must(a.process.Call("Agent.Trap", struct{}{}, &theirs))
	pid := a.process.Cmd.Process.Pid
	pidfd, err := unix.PidfdOpen(pid, 0)
	r.must(err)
	defer func() { _ = unix.Close(pidfd) }()
	listener, err := unix.PidfdGetfd(pidfd, theirs, 0)
	r.must(err)
	// The agent gives up its own: should this process end, its calls fail instead
	// of waiting for ever.
	r.must(a.process.Call("Agent.Trapped", theirs, &struct{}{}))
	go f.answer(listener, pid)
	return a
}

func (f *callFaults) plan(r *run, what string, args ...string) {
	r.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.what, f.at, f.calls = what, 0, nil
	if len(args) > 0 {
		var err error
		f.at, err = strconv.Atoi(args[0])
		r.must(err)
	}
	// What has done its work and then fails, or kills, leaves what the next call
	// finds when it fails, or kills, before its work.
	if what == failAfter || what == killAfter {
		f.at++
	}
}

func (f *callFaults) steps(*run) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *callFaults) writes(r *run) []string { return f.steps(r) }

// The kernel's struct seccomp_notif and seccomp_notif_resp.
type notice struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// answer answers the kernel until the agent has ended.
func (f *callFaults) answer(listener, pid int) {
	defer func() { _ = unix.Close(listener) }()
	for {
		ready := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return // no thread is left
		}
		var n notice
		if !notify(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) {
			continue // that thread was killed meanwhile
		}
		res := response{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		switch f.strike(describe(int(n.PID), n)) {
		case failAt, failAfter:
			res.Flags, res.Error = 0, -int32(unix.ENOMEM)
		case killAt, killAfter:
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
			res.Flags, res.Error = 0, -int32(unix.EINTR)
		}
		notify(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&res))
	}
}

func notify(listener int, what uintptr, arg unsafe.Pointer) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), what, uintptr(arg))
	return errno == 0
}

// strike notes a call and tells what becomes of it. call is "" for those that
// change nothing of ours.
func (f *callFaults) strike(call string) string {
	if call == "" {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if f.at == len(f.calls) {
		return f.what
	}
	return ""
}

// writing are the commands of bpf(2) that change what forwards, each with the
// place of the map in its argument, or -1.
var writing = map[uint64]struct {
	name  string
	mapAt int
}{
	2: {"BPF_MAP_UPDATE_ELEM", 0}, 3: {"BPF_MAP_DELETE_ELEM", 0}, 6: {"BPF_OBJ_PIN", -1}, 8: {"BPF_PROG_ATTACH", -1}, 9: {"BPF_PROG_DETACH", -1},
	26: {"BPF_MAP_UPDATE_BATCH", 36}, 27: {"BPF_MAP_DELETE_BATCH", 36}, 28: {"BPF_LINK_CREATE", -1}, 29: {"BPF_LINK_UPDATE", -1}, 34: {"BPF_LINK_DETACH", -1},
}

// ofPackets are the maps that the programs write themselves, and those that the
// agent keeps beside its Syncs.
var ofPackets = []string{"affinity", "udp_flows", "udp_answers", "connected", "namespaces", "strangers"}

// describe names a call; "": it changes nothing that a Sync is about.
func describe(pid int, n notice) string {
	switch n.Nr {
	case unix.SYS_BPF:
		command, ok := writing[n.Args[0]]
		if !ok {
			return ""
		}
		if command.mapAt < 0 {
			return command.name
		}
		name := mapOf(pid, n.Args[1]+uint64(command.mapAt))
		if slices.Contains(ofPackets, name) {
			return ""
		}
		return command.name + " " + name
	case unix.SYS_UNLINKAT:
		return "unlinkat"
	case unix.SYS_SENDTO:
		return describeNetlink(socketProtocol(pid, n.Args[0]), memory(pid, n.Args[1], netlinkHeader+1))
	case unix.SYS_SENDMSG:
		const iovAt, iovLen = 16, 8 // in struct msghdr
		iov := memory(pid, n.Args[1]+iovAt, iovLen)
		if iov == nil {
			return ""
		}
		base := memory(pid, binary.NativeEndian.Uint64(iov), 8)
		if base == nil {
			return ""
		}
		return describeNetlink(socketProtocol(pid, n.Args[0]), memory(pid, binary.NativeEndian.Uint64(base), netlinkHeader+1))
	}
	return ""
}

const netlinkHeader = 16

// describeNetlink names a message to the kernel; "": it changes nothing, or is none.
func describeNetlink(protocol int, message []byte) string {
	if len(message) < netlinkHeader+1 {
		return ""
	}
	kind, command := binary.NativeEndian.Uint16(message[4:]), message[netlinkHeader]
	switch protocol {
	case unix.NETLINK_ROUTE:
		const get = 2 // of each four kinds of rtnetlink message the third reads
		if kind < unix.RTM_BASE || (kind-unix.RTM_BASE)%4 == get {
			return ""
		}
		return fmt.Sprintf("rtnetlink message %d", kind)
	case unix.NETLINK_NETFILTER:
		if kind != unix.NFNL_MSG_BATCH_BEGIN {
			return "" // whatever is not in a batch reads
		}
		return "nftables transaction"
	case unix.NETLINK_GENERIC:
		const setConfig, flush = 12, 17
		writes := []byte{1, 2, 3, 5, 6, 7, setConfig, flush} // IPVS: new, set and delete, of a service and an endpoint
		if kind == unix.GENL_ID_CTRL || !slices.Contains(writes, command) {
			return ""
		}
		return fmt.Sprintf("IPVS message %d", command)
	}
	return ""
}

// socketProtocol is the netlink protocol of a process's socket, -1 of another.
func socketProtocol(pid int, fd uint64) int {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return -1
	}
	inode := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(table)) {
		const protocolAt, inodeAt = 1, 9
		if words := strings.Fields(line); len(words) > inodeAt && words[inodeAt] == inode {
			protocol, err := strconv.Atoi(words[protocolAt])
			if err == nil {
				return protocol
			}
		}
	}
	return -1
}

// memory is a piece of a process's memory; nil: it cannot be had.
func memory(pid int, at uint64, length int) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, length)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		return nil
	}
	return b
}

// mapOf names the map whose descriptor stands at an address of a process.
func mapOf(pid int, at uint64) string {
	fd := memory(pid, at, 4)
	if fd == nil {
		return "of an unknown map"
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, binary.NativeEndian.Uint32(fd)))
	if err != nil {
		return "of an unknown map"
	}
	for line := range strings.Lines(string(info)) {
		if text, ok := strings.CutPrefix(line, "map_id:"); ok {
			id, _ := strconv.Atoi(strings.TrimSpace(text))
			return mapName(ebpf.MapID(id))
		}
	}
	return "of an unknown map"
}

func mapName(id ebpf.MapID) string {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return "of an unknown map"
	}
	defer func() { _ = m.Close() }()
	info, err := m.Info()
	if err != nil {
		return "of an unknown map"
	}
	return info.Name
}

// Trap makes the kernel ask about this process's calls, by a file descriptor
// that it gives.
func (a *agentService) Trap(_ struct{}, fd *int) error {
	const ret, load, equal = unix.BPF_RET | unix.BPF_K, unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the call
		{Code: equal, K: unix.SYS_BPF, Jt: 4},
		{Code: equal, K: unix.SYS_SENDTO, Jt: 3},
		{Code: equal, K: unix.SYS_SENDMSG, Jt: 2},
		{Code: equal, K: unix.SYS_UNLINKAT, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// All threads at once; a call that waits is not begun again when Go interrupts its thread.
	flags := unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	got, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("installing a seccomp filter: %w", errno)
	}
	*fd = int(got)
	return nil
}

// Trapped gives up the agent's own copy of that file descriptor.
func (a *agentService) Trapped(fd int, _ *struct{}) error { return unix.Close(fd) }

// Package xtables reports what iptables has in the kernel, and adds nothing to it.
package xtables

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// LegacyTables returns the tables that legacy iptables has in this network
// namespace: none if they cannot be listed. Asking its program for a table that
// does not exist would load its module.
func LegacyTables(f dataplane.Family) []string {
	tables, err := LegacyTablesOf("/proc", f)
	if err != nil {
		return nil
	}
	return tables
}

// mostNames is how many bytes of a list are read: one of the kernel's few tables
// fits.
const mostNames = 4 << 10

// LegacyTablesOf returns the tables that legacy iptables has in the network
// namespace of a process, which is given as its folder below /proc. A kernel
// without legacy iptables has none. Any other error says nothing about the tables.
func LegacyTablesOf(process string, f dataplane.Family) ([]string, error) {
	name := process + "/net/ip_tables_names"
	if f == dataplane.IPv6 {
		name = process + "/net/ip6_tables_names"
	}
	file, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the tables of legacy iptables: %w", err)
	}
	defer func() { _ = file.Close() }()
	names, err := io.ReadAll(io.LimitReader(file, mostNames))
	if err != nil {
		return nil, fmt.Errorf("listing the tables of legacy iptables: %w", err)
	}
	return strings.Fields(string(names)), nil
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// Info is the kernel's struct ipt_getinfo, which equals that of IPv6.
type Info struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// HasRules reports whether the table has a rule at a hook.
func (i *Info) HasRules(hook int) bool { return i.hookEntry[hook] != i.underflow[hook] }

// LegacyInfo asks the kernel about a table of legacy iptables in the calling
// thread's network namespace. It is one system call. If the table does not exist,
// the kernel adds it.
func LegacyInfo(f dataplane.Family, table string) (*Info, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == dataplane.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a socket to ask for table %s of legacy iptables: %w", table, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var info Info
	copy(info.name[:len(info.name)-1], table)
	length := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("asking for table %s of legacy iptables: %w", table, errno)
	}
	return &info, nil
}

// LegacySize returns how many bytes the rules of a table of legacy iptables have.
func LegacySize(f dataplane.Family, table string) (uint32, error) {
	info, err := LegacyInfo(f, table)
	if err != nil {
		return 0, err
	}
	return info.size, nil
}

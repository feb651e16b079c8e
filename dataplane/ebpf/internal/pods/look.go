package pods

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// Why a namespace is left to packets.
const (
	byNFTables = "nat rules in OUTPUT (nftables)"
	byLegacy   = "nat rules in OUTPUT (legacy iptables)"
	unseen     = "could not be looked into"
	changing   = "its rules are changing"
)

// Bounds of one look, so that a namespace with many rules costs itself only.
const (
	mostTime    = 300 * time.Millisecond
	mostReads   = 256 // of 32 KiB of chains
	mostAddress = 64
)

// findings is what one look into a namespace found.
type findings struct {
	cookie   uint64
	addrs    []netip.Addr
	nft      bool // nftables translates there
	legacy   bool // legacy iptables does
	changing bool // nftables has changed since
	err      error
	events   int // netlink socket that hears of changes to nftables; -1: none
}

// why is why the namespace is left to packets; "": it is not.
func (f *findings) why() string {
	switch {
	case f.err != nil:
		return unseen
	case f.changing:
		return changing
	case f.nft:
		return byNFTables
	case f.legacy:
		return byLegacy
	}
	return ""
}

// look looks into a namespace. first: it subscribes to changes before it looks,
// so that none is missed.
func look(ns *os.File, first bool) findings {
	out := findings{events: -1}
	out.err = netns.Inside(ns, func() (err error) {
		if out.cookie, err = netnsCookie(); err != nil {
			return err
		}
		if out.addrs, err = addresses(); err != nil {
			return err
		}
		if first {
			if out.events, err = subscribe(); err != nil {
				return err
			}
		}
		if out.nft, err = nftTranslates(); err != nil {
			return err
		}
		out.legacy, err = legacyTranslates("/proc/thread-self")
		return err
	})
	return out
}

// Survey looks once into the network namespace of each pod below a cgroup. It
// tells how many have nothing in the way of their sockets' translation, and how
// many have, by what.
func Survey(cgroup string) (translated int, left map[string]int, err error) {
	found, err := processes(cgroup, map[string]string{})
	if err != nil {
		return 0, nil, err
	}
	delete(found, namespaceOf("self"))
	left = map[string]int{}
	for _, pid := range found {
		file, err := os.Open(namespaceFile(pid))
		if err != nil {
			continue // its process has ended
		}
		f := look(file, false)
		_ = file.Close()
		if why := f.why(); why == "" {
			translated++
		} else {
			left[why]++
		}
	}
	return translated, left, nil
}

// Not in package unix.
const soNetnsCookie = 71

func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, soNetnsCookie)
	if err != nil {
		return 0, fmt.Errorf("asking for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// addresses are those of this thread's namespace by which clients are known.
func addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if out = append(out, p.Addr().Unmap()); len(out) == mostAddress {
			break
		}
	}
	return out, nil
}

// subscribe is a netlink socket that hears of each change to nftables in this
// thread's namespace; -1: this kernel has no nf_tables.
func subscribe() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("subscribing to changes of nftables: %w", err)
	}
	return fd, nil
}

// What a chain of nftables has (enum nft_chain_attributes, nft_hook_attributes).
const (
	getChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	newChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN

	chainHook      = unix.NFTA_CHAIN_HOOK
	chainUse       = unix.NFTA_CHAIN_USE
	chainType      = unix.NFTA_CHAIN_TYPE
	hookNumber     = unix.NFTA_HOOK_HOOKNUM
	localOut       = unix.NF_INET_LOCAL_OUT
	sizeofNfgenmsg = 4
	headerBytes    = unix.SizeofNlMsghdr + sizeofNfgenmsg
)

// nftTranslates reports whether a chain of type nat at hook output has a rule, in
// any family. No rule is read: the kernel counts the rules of each base chain.
func nftTranslates() (bool, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	timeout := unix.NsecToTimeval(int64(mostTime))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return false, fmt.Errorf("limiting the time of a netlink socket: %w", err)
	}
	request := make([]byte, headerBytes)
	binary.NativeEndian.PutUint32(request, headerBytes)
	binary.NativeEndian.PutUint16(request[4:], getChain)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("asking for chains: %w", err)
	}
	buffer := make([]byte, 32<<10)
	end := time.Now().Add(mostTime)
	for range mostReads {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return false, fmt.Errorf("reading chains: %w", err)
		}
		found, done, err := scanChains(buffer[:n])
		if found || done || err != nil {
			return found, err
		}
		if time.Now().After(end) {
			break
		}
	}
	return false, errors.New("reading chains: there are too many")
}

var errCut = errors.New("a netlink message is cut short")

// scanChains looks through one datagram of a dump. done: it was the last.
func scanChains(data []byte) (found, done bool, err error) {
	for len(data) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(data))
		if length < unix.SizeofNlMsghdr || length > len(data) {
			return false, true, errCut
		}
		body := data[unix.SizeofNlMsghdr:length]
		switch binary.NativeEndian.Uint16(data[4:]) {
		case unix.NLMSG_DONE:
			return false, true, nil
		case unix.NLMSG_ERROR:
			return false, true, dumpError(body)
		case newChain:
			if len(body) >= sizeofNfgenmsg && isOutputNAT(body[sizeofNfgenmsg:]) {
				return true, true, nil
			}
		}
		data = data[min(align(length), len(data)):]
	}
	return false, false, nil
}

func dumpError(body []byte) error {
	if len(body) < 4 {
		return errCut
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 || slices.Contains([]unix.Errno{unix.EINVAL, unix.EOPNOTSUPP}, errno) {
		return nil // this kernel has no nf_tables
	}
	return fmt.Errorf("reading chains: %w", errno)
}

func align(n int) int { return (n + 3) &^ 3 }

// eachAttribute calls each with the type and the value of each attribute of a
// netlink message.
func eachAttribute(data []byte, each func(kind uint16, value []byte)) {
	for len(data) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(data))
		if length < unix.SizeofNlAttr || length > len(data) {
			return
		}
		each(binary.NativeEndian.Uint16(data[2:])&^unix.NLA_F_NESTED, data[unix.SizeofNlAttr:length])
		data = data[min(align(length), len(data)):]
	}
}

// isOutputNAT tells a base chain of type nat at hook output that has a rule.
func isOutputNAT(attributes []byte) bool {
	kind, hook, rules := "", uint32(0), uint32(0)
	number := func(v []byte) uint32 {
		if len(v) < 4 {
			return 0
		}
		return binary.BigEndian.Uint32(v)
	}
	eachAttribute(attributes, func(a uint16, value []byte) {
		switch a {
		case chainType:
			kind = strings.TrimRight(string(value), "\x00")
		case chainUse:
			rules = number(value)
		case chainHook:
			eachAttribute(value, func(a uint16, value []byte) {
				if a == hookNumber {
					hook = number(value)
				}
			})
		}
	})
	return kind == "nat" && hook == localOut && rules > 0
}

// legacyTables reports whether legacy iptables has a table nat, for IPv4 and for
// IPv6, in the namespace of a process. A kernel without legacy iptables has no
// such file; any other error says nothing about the tables.
func legacyTables(process string) (tables [2]bool, err error) {
	for i, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		names, err := os.ReadFile(process + "/net/" + file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return tables, fmt.Errorf("listing the tables of legacy iptables: %w", err)
		}
		tables[i] = slices.Contains(strings.Fields(string(names)), "nat")
	}
	return tables, nil
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// legacyInfo is the kernel's struct ipt_getinfo and ip6t_getinfo.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// legacyTranslates reports whether chain OUTPUT of legacy iptables' table nat has
// a rule in this thread's namespace. To ask for a table would make it, so only
// those are asked for that are there.
func legacyTranslates(process string) (bool, error) {
	tables, err := legacyTables(process)
	if err != nil {
		return false, err
	}
	for i, f := range []struct{ family, level int }{{unix.AF_INET, unix.SOL_IP}, {unix.AF_INET6, unix.SOL_IPV6}} {
		if !tables[i] {
			continue
		}
		info := legacyInfo{name: [32]byte{'n', 'a', 't'}}
		if err := legacyTable(f.family, f.level, &info); err != nil {
			return false, err
		}
		if info.hookEntry[localOut] != info.underflow[localOut] {
			return true, nil
		}
	}
	return false, nil
}

func legacyTable(family, level int, info *legacyInfo) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	size := uint32(unsafe.Sizeof(*info))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return fmt.Errorf("reading table nat of legacy iptables: %w", errno)
	}
	return nil
}

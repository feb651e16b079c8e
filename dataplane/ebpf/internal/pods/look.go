package pods

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/cgroups"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// Why a namespace is left to packets.
const (
	byNFTables = "nat rules in OUTPUT (nftables)"
	byLegacy   = "nat rules in OUTPUT (legacy iptables)"
	byAnother  = "reached by way of another network namespace"
	unseen     = "could not be looked into"
	changing   = "its rules are changing"
)

// Bounds of one look, so that a namespace with many rules costs itself only.
const (
	mostTime    = 300 * time.Millisecond // of a processor, for a list
	mostWait    = 5 * time.Second        // for a part of a list
	mostReads   = 256                    // of 32 KiB of a list
	mostAddress = 64
	mostLinks   = 64 // other namespaces that a namespace has devices in
)

// errNoCookie is what a look says on kernels before 5.14.
var errNoCookie = errors.New("the kernel does not tell the network namespace's cookie")

// findings is what one look into a namespace found.
type findings struct {
	cookie   uint64
	addrs    []netip.Addr
	nft      bool // nftables translates there
	legacy   bool // legacy iptables does
	another  bool // its packets pass another namespace before they come to the node's
	bare     bool // it has no device yet by which packets leave
	changing bool // nftables has changed since
	err      error
	events   *follow.Follower // hears of changes to nftables; nil: there is no nf_tables, or no first look
}

// why returns why the namespace is left to packets. Empty means that it is not.
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
	case f.another:
		return byAnother
	}
	return ""
}

// look looks into a namespace. node is the node's own. first: it subscribes to
// changes before it looks, so that none is missed.
func look(ns, node *os.File, first bool) findings {
	out := findings{}
	out.err = netns.Inside(ns, func() (err error) {
		if out.cookie, err = programs.NetnsCookie(); err != nil {
			return err
		}
		if out.cookie == 0 {
			return errNoCookie
		}
		if out.addrs, err = addresses(); err != nil {
			return err
		}
		if first {
			if out.events, err = subscribe(ns); err != nil {
				return err
			}
		}
		if out.another, out.bare, err = passesAnother(node); err != nil {
			return err
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
	search, err := cgroups.Search(cgroup, nil)
	if err != nil {
		return 0, nil, err
	}
	found := search.Processes
	delete(found, cgroups.NamespaceOf("self"))
	node, err := os.Open(cgroups.NamespaceFile("self"))
	if err != nil {
		return 0, nil, fmt.Errorf("opening the node's network namespace: %w", err)
	}
	defer func() { _ = node.Close() }()
	left = map[string]int{}
	for _, pid := range found {
		file, err := os.Open(cgroups.NamespaceFile(pid))
		if err != nil {
			continue // its process has ended
		}
		f := look(file, node, false)
		_ = file.Close()
		if why := f.why(); why == "" {
			translated++
		} else {
			left[why]++
		}
	}
	return translated, left, nil
}

// addresses returns those of this thread's namespace by which clients are known: the
// first ones, if there are many.
func addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	err := ask(unix.NETLINK_ROUTE, unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg), func(kind uint16, body []byte) bool {
		if kind == unix.RTM_NEWADDR && len(body) >= unix.SizeofIfAddrmsg {
			var a netip.Addr
			eachAttribute(body[unix.SizeofIfAddrmsg:], func(kind uint16, value []byte) {
				if got, ok := netip.AddrFromSlice(value); ok && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !a.IsValid()) {
					a = got.Unmap()
				}
			})
			if a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				out = append(out, a)
			}
		}
		return len(out) == mostAddress
	})
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return out, nil
}

// passesAnother reports whether this thread's namespace has devices whose other
// end is in another namespace, and none of them in the node's: packets pass that
// namespace first, as those of a cluster inside a container do. There they may be
// meant for Services of another cluster. bare reports that it has no device that
// is up, but for the loopback: it may be on its way.
func passesAnother(node *os.File) (another, bare bool, err error) {
	bare = true
	var ends []uint32
	err = ask(unix.NETLINK_ROUTE, unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg), func(kind uint16, body []byte) bool {
		if kind != unix.RTM_NEWLINK || len(body) < unix.SizeofIfInfomsg {
			return false
		}
		if flags := binary.NativeEndian.Uint32(body[8:]); flags&unix.IFF_UP != 0 && flags&unix.IFF_LOOPBACK == 0 {
			bare = false
		}
		eachAttribute(body[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
			if kind == unix.IFLA_LINK_NETNSID && len(value) >= 4 {
				ends = append(ends, binary.NativeEndian.Uint32(value))
			}
		})
		return len(ends) >= mostLinks
	})
	if err != nil {
		return false, false, fmt.Errorf("listing devices: %w", err)
	}
	if len(ends) == 0 {
		return false, bare, nil
	}
	id, err := namespaceID(node)
	return !slices.Contains(ends, id), bare, err
}

// namespaceID returns the number that this thread's namespace has for another one; it
// has one for each in which a listed device ends.
func namespaceID(ns *os.File) (id uint32, err error) {
	body := make([]byte, 4, 12) // struct rtgenmsg, padded
	body = binary.NativeEndian.AppendUint16(body, 8)
	body = binary.NativeEndian.AppendUint16(body, unix.NETNSA_FD)
	body = binary.NativeEndian.AppendUint32(body, uint32(ns.Fd()))
	err = ask(unix.NETLINK_ROUTE, unix.RTM_GETNSID, 0, body, func(_ uint16, body []byte) bool {
		eachAttribute(body[min(4, len(body)):], func(kind uint16, value []byte) {
			if kind == unix.NETNSA_NSID && len(value) >= 4 {
				id = binary.NativeEndian.Uint32(value)
			}
		})
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("asking for a network namespace's number: %w", err)
	}
	return id, nil
}

// subscribe follows the changes to nftables in this thread's namespace, which is
// ns. It returns nil if this kernel has no nf_tables.
func subscribe(ns *os.File) (*follow.Follower, error) {
	f, err := follow.Start(follow.Source{
		Protocol: unix.NETLINK_NETFILTER, Groups: []uint32{unix.NFNLGRP_NFTABLES},
		In: func(do func() error) error { return netns.Inside(ns, do) },
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes of nftables: %w", err)
	}
	return f, nil
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
func nftTranslates() (found bool, err error) {
	err = ask(unix.NETLINK_NETFILTER, getChain, unix.NLM_F_DUMP, make([]byte, sizeofNfgenmsg), outputNAT(&found))
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil // this kernel has no nf_tables
	}
	if err != nil {
		return false, fmt.Errorf("reading chains: %w", err)
	}
	return found, nil
}

// outputNAT looks for such a chain in a dump.
func outputNAT(found *bool) func(kind uint16, body []byte) (done bool) {
	return func(kind uint16, body []byte) bool {
		*found = kind == newChain && len(body) >= sizeofNfgenmsg && isOutputNAT(body[sizeofNfgenmsg:])
		return *found
	}
}

var errTooMany = errors.New("there are too many")

// ask sends a request to netlink and calls each with the messages of the answer,
// until it has enough. The time that it waits, for the kernel's lock of all
// devices say, does not count to mostTime: it is no fault of this namespace.
func ask(protocol int, kind, flags uint16, body []byte, each func(kind uint16, body []byte) (done bool)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	timeout := unix.NsecToTimeval(int64(mostWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("limiting the time of a netlink socket: %w", err)
	}
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(request, uint32(cap(request)))
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|flags)
	request = append(request, body...)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("asking netlink: %w", err)
	}
	buffer := make([]byte, 32<<10)
	start, err := processorTime()
	if err != nil {
		return err
	}
	for range mostReads {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return fmt.Errorf("reading from netlink: %w", err)
		}
		if done, err := scan(buffer[:n], each); done || err != nil {
			return err
		}
		if now, err := processorTime(); err != nil || now-start > mostTime {
			return errors.Join(errTooMany, err)
		}
	}
	return errTooMany
}

// processorTime is how long this thread has run, in the kernel too.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("asking for the thread's time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

var errCut = errors.New("a netlink message is cut short")

// scan calls each with the messages of one datagram of an answer. done: it was the
// last, or each has enough.
func scan(data []byte, each func(kind uint16, body []byte) (done bool)) (done bool, err error) {
	for len(data) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(data))
		if length < unix.SizeofNlMsghdr || length > len(data) {
			return true, errCut
		}
		body := data[unix.SizeofNlMsghdr:length]
		switch kind := binary.NativeEndian.Uint16(data[4:]); kind {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			return true, dumpError(body)
		default:
			if each(kind, body) {
				return true, nil
			}
		}
		data = data[min(align(length), len(data)):]
	}
	return false, nil
}

func dumpError(body []byte) error {
	if len(body) < 4 {
		return errCut
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 || slices.Contains([]unix.Errno{unix.EINVAL, unix.EOPNOTSUPP}, errno) {
		return nil // this kernel has no nf_tables
	}
	return errno
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
// IPv6, in the namespace of a process.
func legacyTables(process string) (tables [2]bool, err error) {
	for i, f := range families() {
		names, err := xtables.LegacyTablesOf(process, f)
		if err != nil {
			return tables, err
		}
		tables[i] = slices.Contains(names, "nat")
	}
	return tables, nil
}

func families() [2]dataplane.Family { return [2]dataplane.Family{dataplane.IPv4, dataplane.IPv6} }

// legacyTranslates reports whether chain OUTPUT of legacy iptables' table nat has
// a rule in this thread's namespace. Asking for a table that does not exist would
// add it, so it asks only for those that exist.
func legacyTranslates(process string) (bool, error) {
	tables, err := legacyTables(process)
	if err != nil {
		return false, err
	}
	for i, f := range families() {
		if !tables[i] {
			continue
		}
		info, err := xtables.LegacyInfo(f, "nat")
		if err != nil {
			return false, err
		}
		if info.HasRules(localOut) {
			return true, nil
		}
	}
	return false, nil
}

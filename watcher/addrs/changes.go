package addrs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// changes is what may make an address local, or end that.
func changes() follow.Source {
	return follow.Source{
		Protocol: unix.NETLINK_ROUTE,
		Groups:   []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE},
		Filter:   filter(),
	}
}

// filter lets through the messages that matter. The others, such as the routes
// of a routing daemon or of Switchyard's IPVS backend, would fill the socket's
// buffer. A removed device is among those that matter, because the kernel
// removes its IPv4 routes without a message.
func filter() []unix.SockFilter {
	const (
		typeAt     = 4 // in struct nlmsghdr
		protocolAt = unix.SizeofNlMsghdr + 5
		kindAt     = unix.SizeofNlMsghdr + 7
		all, none  = 0xffff, 0
	)
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
	}
	equal := func(to uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: to, Jt: yes, Jf: no}
	}
	give := func(n uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: n} }
	return []unix.SockFilter{
		load(unix.BPF_H, typeAt),
		equal(asLoaded(unix.RTM_NEWADDR), 8, 0),
		equal(asLoaded(unix.RTM_DELADDR), 7, 0),
		equal(asLoaded(unix.RTM_DELLINK), 6, 0),
		equal(asLoaded(unix.RTM_NEWROUTE), 1, 0),
		equal(asLoaded(unix.RTM_DELROUTE), 0, 5),
		load(unix.BPF_B, kindAt),
		equal(unix.RTN_LOCAL, 0, 3),
		load(unix.BPF_B, protocolAt),
		equal(dataplane.RouteProtocol, 1, 0),
		give(all),
		give(none),
	}
}

// asLoaded is a number in this machine's byte order as a filter loads it: the
// higher byte first.
func asLoaded(n uint16) uint32 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], n)
	return uint32(binary.BigEndian.Uint16(b[:]))
}

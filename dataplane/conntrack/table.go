package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// Attributes and flags of the kernel's conntrack messages that package nl lacks.
const (
	ctaFilter          = 25 // nested; Linux 5.8, older kernels pass over it
	ctaFilterOrigFlags = 1
	filterByProtocol   = 1 << 3
	statusDstNAT       = 1 << 5 // of CTA_STATUS
)

const (
	socketTimeout = 10 * time.Second
	headerLen     = nl.SizeofNfgenmsg
	attrHeaderLen = nl.SizeofNfattr
)

// flow is one UDP entry of the kernel's table.
type flow struct {
	dst      netip.AddrPort // where the client sends to
	replySrc netip.AddrPort // who answers
	nat      bool           // the kernel's NAT translates its destination
}

// deleteUDP deletes the UDP entries of a family that stale picks and counts
// them. It reads the table once, message by message, so that its memory is that
// of the entries to delete and not of the table, and lets the kernel pass over
// other protocols where it can. ctx ends it between two messages.
func deleteUDP(ctx context.Context, family dataplane.Family, stale func(flow) bool) (int, error) {
	t, err := openTable(family)
	if err != nil {
		return 0, err
	}
	defer t.close()

	deleted := 0
	return follow.Whole(func() (int, error) {
		var keys [][]byte
		dumpErr := t.dumpUDP(ctx, func(msg []byte) {
			if f, ok := parseUDP(msg); ok && stale(f) {
				keys = append(keys, entryKey(msg))
			}
		})
		// What an interrupted dump found is stale all the same.
		n, err := t.delete(ctx, keys)
		deleted += n
		switch {
		case ctx.Err() != nil:
			return deleted, ctx.Err()
		case err != nil:
			return deleted, err
		case dumpErr != nil:
			return deleted, fmt.Errorf("reading the %s conntrack table: %w", family, dumpErr)
		}
		return deleted, nil
	})
}

// table is a netlink socket to the kernel's conntrack table of the calling
// thread's network namespace.
type table struct {
	family  dataplane.Family
	socket  *nl.SocketHandle
	sockets map[int]*nl.SocketHandle
}

func openTable(family dataplane.Family) (*table, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket to conntrack: %w", err)
	}
	t := &table{family: family, socket: &nl.SocketHandle{Socket: s}}
	t.sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: t.socket}
	timeout := unix.NsecToTimeval(int64(socketTimeout))
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		t.close()
		return nil, fmt.Errorf("setting the timeouts of a netlink socket: %w", err)
	}
	return t, nil
}

func (t *table) close() { t.socket.Close() }

func (t *table) request(operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.Sockets = t.sockets
	family := uint8(unix.AF_INET)
	if t.family == dataplane.IPv6 {
		family = unix.AF_INET6
	}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// dumpUDP calls visit with each message of the table. Others than UDP may be
// among them. The message is visit's only during the call.
func (t *table) dumpUDP(ctx context.Context, visit func(msg []byte)) error {
	req := t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	addUDPFilter(req)
	err := t.dump(ctx, req, visit)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		// This kernel's filter is not as above: filter here.
		err = t.dump(ctx, t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP), visit)
	}
	return err
}

func (t *table) dump(ctx context.Context, req *nl.NetlinkRequest, visit func(msg []byte)) error {
	return req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		visit(msg)
		return ctx.Err() == nil
	})
}

func addUDPFilter(req *nl.NetlinkRequest) {
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil).AddRtAttr(nl.CTA_PROTO_NUM, nl.Uint8Attr(unix.IPPROTO_UDP))
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(filterByProtocol))
	req.AddData(tuple)
	req.AddData(filter)
}

// delete deletes entries by their keys and counts those that were still there.
// One that cannot be deleted does not hold up the rest.
func (t *table) delete(ctx context.Context, keys [][]byte) (int, error) {
	deleted, failed := 0, 0
	var first error
	for _, key := range keys {
		if ctx.Err() != nil {
			return deleted, ctx.Err()
		}
		req := t.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		req.AddRawData(key)
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		switch {
		case err == nil:
			deleted++
		case errors.Is(err, unix.ENOENT): // it ended by itself
		default:
			failed++
			if first == nil {
				first = err
			}
		}
	}
	if failed > 0 {
		return deleted, fmt.Errorf("deleting %d of %d %s conntrack entries: %w", failed, len(keys), t.family, first)
	}
	return deleted, nil
}

// attr is a netlink attribute.
type attr struct {
	kind  uint16
	value []byte
	raw   []byte // with its header and padding
}

// attrs walks the attributes of a message and ends at one that is cut short.
func attrs(b []byte) iter.Seq[attr] {
	return func(yield func(attr) bool) {
		for len(b) >= attrHeaderLen {
			size := int(binary.NativeEndian.Uint16(b))
			if size < attrHeaderLen || size > len(b) {
				return
			}
			padded := min((size+3)&^3, len(b))
			a := attr{kind: binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK, value: b[attrHeaderLen:size], raw: b[:padded]}
			if !yield(a) {
				return
			}
			b = b[padded:]
		}
	}
}

// parseUDP reads an entry; false: it is not of UDP.
func parseUDP(msg []byte) (flow, bool) {
	var f flow
	if len(msg) < headerLen {
		return f, false
	}
	for a := range attrs(msg[headerLen:]) {
		switch a.kind {
		case nl.CTA_TUPLE_ORIG:
			t := parseTuple(a.value)
			if t.protocol != unix.IPPROTO_UDP {
				return f, false
			}
			f.dst = netip.AddrPortFrom(t.dst, t.dstPort)
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(a.value)
			f.replySrc = netip.AddrPortFrom(t.src, t.srcPort)
		case nl.CTA_STATUS:
			f.nat = len(a.value) == 4 && binary.BigEndian.Uint32(a.value)&statusDstNAT != 0
		}
	}
	return f, f.dst.IsValid() && f.replySrc.IsValid()
}

// tuple is one direction of an entry.
type tuple struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
	protocol         uint8
}

func parseTuple(b []byte) tuple {
	var t tuple
	for a := range attrs(b) {
		switch a.kind {
		case nl.CTA_TUPLE_IP:
			for ip := range attrs(a.value) {
				addr, _ := netip.AddrFromSlice(ip.value)
				switch ip.kind {
				case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
					t.src = addr
				case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
					t.dst = addr
				}
			}
		case nl.CTA_TUPLE_PROTO:
			t.parseProtocol(a.value)
		}
	}
	return t
}

func (t *tuple) parseProtocol(b []byte) {
	for a := range attrs(b) {
		switch {
		case a.kind == nl.CTA_PROTO_NUM && len(a.value) == 1:
			t.protocol = a.value[0]
		case a.kind == nl.CTA_PROTO_SRC_PORT && len(a.value) == 2:
			t.srcPort = binary.BigEndian.Uint16(a.value)
		case a.kind == nl.CTA_PROTO_DST_PORT && len(a.value) == 2:
			t.dstPort = binary.BigEndian.Uint16(a.value)
		}
	}
}

// entryKey is what names an entry in a request to delete it: the tuple, the
// zone, and the kernel's id, so that an entry that took its place since is safe.
func entryKey(msg []byte) []byte {
	var key []byte
	for a := range attrs(msg[headerLen:]) {
		switch a.kind {
		case nl.CTA_TUPLE_ORIG, nl.CTA_ZONE, nl.CTA_ID:
			key = append(key, a.raw...)
		}
	}
	return key
}

package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// Flows calls visit with each connection of a family that has its destination
// translated. It reads the table once, so on a busy node it may miss some that
// come or go meanwhile.
func Flows(ctx context.Context, family dataplane.Family, visit func(dataplane.Flow)) error {
	return dumpOnce(ctx, family, func(msg []byte) {
		if f, ok := parseFlow(msg); ok && f.Dst != f.Endpoint {
			visit(f)
		}
	})
}

// Standing is a connection of TCP or SCTP that has its destination translated
// and has not come to its end.
type Standing struct {
	Protocol         dataplane.Protocol
	Endpoint, Client netip.AddrPort // the client as the endpoint sees it
}

// EachStanding calls visit with each of a family; see Flows.
func EachStanding(ctx context.Context, family dataplane.Family, visit func(Standing)) error {
	return dumpOnce(ctx, family, func(msg []byte) {
		if s, ok := parseStanding(msg); ok {
			visit(s)
		}
	})
}

// EndUDP deletes the UDP entries of a family that lead where to tells, and whose
// destination is translated by something else than the kernel's NAT: IPVS. It
// counts them.
func EndUDP(ctx context.Context, family dataplane.Family, to func(netip.AddrPort) bool) (int, error) {
	return deleteUDP(ctx, family, func(f flow) bool { return !f.nat && f.dst != f.replySrc && to(f.dst) })
}

// dumpOnce calls visit with each message of the table. It may miss some entries.
func dumpOnce(ctx context.Context, family dataplane.Family, visit func(msg []byte)) error {
	t, err := openTable(family)
	if err != nil {
		return err
	}
	defer t.close()
	err = t.dump(ctx, t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP), visit)
	if err != nil && !follow.Interrupted(err) { // a count that is a little off is good enough
		return fmt.Errorf("reading the %s conntrack table: %w", family, err)
	}
	return ctx.Err()
}

func parseStanding(msg []byte) (Standing, bool) {
	f, ok := parseFlow(msg)
	if !ok || f.Dst == f.Endpoint || (f.Protocol != dataplane.TCP && f.Protocol != dataplane.SCTP) {
		return Standing{}, false
	}
	s := Standing{Protocol: f.Protocol, Endpoint: f.Endpoint}
	for a := range attrs(msg[headerLen:]) {
		switch a.kind {
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(a.value)
			s.Client = netip.AddrPortFrom(t.dst, t.dstPort)
		case nl.CTA_PROTOINFO:
			if !stands(a.value) {
				return Standing{}, false
			}
		}
	}
	return s, s.Client.IsValid()
}

// stands tells whether a connection is answered and not closed, by what
// conntrack knows of its protocol. Of SCTP, whose silence is short, any does.
func stands(protocol []byte) bool {
	for a := range attrs(protocol) {
		if a.kind != nl.CTA_PROTOINFO_TCP {
			continue
		}
		for tcp := range attrs(a.value) {
			if tcp.kind == nl.CTA_PROTOINFO_TCP_STATE && len(tcp.value) == 1 {
				return tcp.value[0] >= nl.TCP_CONNTRACK_SYN_RECV && tcp.value[0] <= nl.TCP_CONNTRACK_LAST_ACK
			}
		}
	}
	return true
}

func parseFlow(msg []byte) (dataplane.Flow, bool) {
	var f dataplane.Flow
	if len(msg) < headerLen {
		return f, false
	}
	for a := range attrs(msg[headerLen:]) {
		switch a.kind {
		case nl.CTA_TUPLE_ORIG:
			t := parseTuple(a.value)
			f.Protocol, f.Dst = dataplane.Protocol(t.protocol), netip.AddrPortFrom(t.dst, t.dstPort)
		case nl.CTA_TUPLE_REPLY:
			t := parseTuple(a.value)
			f.Endpoint = netip.AddrPortFrom(t.src, t.srcPort)
		case nl.CTA_COUNTERS_ORIG, nl.CTA_COUNTERS_REPLY:
			for c := range attrs(a.value) {
				if c.kind == nl.CTA_COUNTERS_BYTES && len(c.value) == 8 {
					f.Counted = true
					f.Bytes += binary.BigEndian.Uint64(c.value)
				}
			}
		}
	}
	return f, f.Dst.IsValid() && f.Endpoint.IsValid()
}

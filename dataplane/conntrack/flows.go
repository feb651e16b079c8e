package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Flows calls visit with each connection of a family that has its destination
// translated. It reads the table once, so on a busy node it may miss some that
// come or go meanwhile.
func Flows(ctx context.Context, family dataplane.Family, visit func(dataplane.Flow)) error {
	t, err := openTable(family)
	if err != nil {
		return err
	}
	defer t.close()
	err = t.dump(ctx, t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP), func(msg []byte) {
		if f, ok := parseFlow(msg); ok && f.Dst != f.Endpoint {
			visit(f)
		}
	})
	if err != nil && !interrupted(err) { // a count that is a little off is good enough
		return fmt.Errorf("reading the %s conntrack table: %w", family, err)
	}
	return ctx.Err()
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

package packet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
)

// keepPorts enters the connections that the kernel's NAT masquerades in the
// table, which so gives their source ports to no other: an older backend's go on
// beside those that begin here. Flows of UDP begin here anew. Those that begin
// later, and would have a port of ours, get another one as they go out.
func (p *Path) keepPorts(ctx context.Context) error {
	if isRetired(p.cfg.Retired) {
		return nil
	}
	ours, kept := p.masqueradeAddresses(), 0
	for _, family := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		var failed error
		err := conntrack.EachStanding(ctx, family, func(s conntrack.Standing) {
			if failed == nil && ours[s.Client.Addr()] {
				failed = p.keep(s)
				kept++
			}
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	if kept > 0 {
		p.cfg.Log.Info("source ports are kept for connections that the kernel's NAT masquerades", "connections", kept)
	}
	return nil
}

// masqueradeAddresses are those of all devices.
func (p *Path) masqueradeAddresses() map[netip.Addr]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[netip.Addr]bool{}
	for _, d := range p.written {
		for _, a := range [][16]byte{d.V4, d.V6} {
			all[netip.AddrFrom16(a).Unmap()] = true
		}
	}
	return all
}

// keep makes the two entries of a connection of the node that become what they are.
func (p *Path) keep(s conntrack.Standing) error {
	out := tuple{Src: s.Client.Addr().As16(), Dst: s.Endpoint.Addr().As16(), Protocol: uint8(s.Protocol), Stage: stageOut}
	binary.BigEndian.PutUint16(out.Sport[:], s.Client.Port())
	binary.BigEndian.PutUint16(out.Dport[:], s.Endpoint.Port())
	for _, e := range []struct {
		key   tuple
		flags uint8
	}{{out.reversed(stageIn), connKernel | connInject}, {out, connKernel | connPrimary | connNode}} {
		value := conn{Src: e.key.Src, Dst: e.key.Dst, Sport: e.key.Sport, Dport: e.key.Dport, Flags: e.flags, Seen: uint64(monotonic())}
		err := p.cfg.Collection.Maps[mapConnections].Update(e.key, value, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) { // one of ours, or kept before
			return nil
		}
		if errors.Is(err, unix.E2BIG) {
			return fmt.Errorf("the connection table is full; raise %s", p.cfg.ConnectionsFlag)
		}
		if err != nil {
			return fmt.Errorf("entering %s from %s to %s in the connection table: %w", s.Protocol, s.Client, s.Endpoint, err)
		}
	}
	return nil
}

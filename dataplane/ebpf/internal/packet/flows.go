package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Flows calls visit with each connection in the table. Nobody counts its bytes.
func (p *Path) Flows(visit func(dataplane.Flow)) error {
	var key tuple
	var value conn
	all := p.cfg.Collection.Maps[mapConnections].Iterate()
	for all.Next(&key, &value) {
		if value.Flags&connPrimary == 0 || value.Flags&connKernel != 0 {
			continue
		}
		visit(dataplane.Flow{
			Protocol: dataplane.Protocol(key.Protocol),
			Dst:      addrPort(key.Dst, key.Dport),
			Endpoint: addrPort(value.Dst, value.Dport),
		})
	}
	// Where entries go meanwhile, a walk may end early: the numbers are a little off.
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("reading the connection table: %w", err)
	}
	return nil
}

func addrPort(a [16]byte, port [2]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), binary.BigEndian.Uint16(port[:]))
}

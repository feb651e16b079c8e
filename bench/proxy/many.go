package proxy

import (
	"context"
	"net/netip"
	"strings"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// many holds the addresses of further endpoints, which are all in one pod of the
// other node. A server there answers with the third byte of the address that was
// asked, so that a client sees which block of 256 addresses it reached.
const many = "10.40.128.0/17"

// FirstBlock is the first block that is not Many's, and LastBlock the last one.
const (
	FirstBlock = 160
	LastBlock  = 255
)

// Many are the addresses of up to 8,000 further endpoints.
func Many(n int) []control.Endpoint {
	return endpoints(netip.MustParsePrefix(many).Addr(), n)
}

// Block are the first addresses of the block whose servers answer with this byte.
func Block(id byte, n int) []control.Endpoint {
	first := netip.MustParsePrefix(many).Addr().As4()
	first[2] = id
	return endpoints(netip.AddrFrom4(first), n)
}

// endpoints are those that follow an address.
func endpoints(a netip.Addr, n int) []control.Endpoint {
	var all []control.Endpoint
	for range n {
		a = a.Next()
		all = append(all, control.Endpoint{Addrs: []netip.Addr{a}, Node: "node-b"})
	}
	return all
}

// ServeMany makes further endpoints answer on UDP.
func (p *Proxy) ServeMany(ctx context.Context) error {
	pod := p.Lab.Host("b1")
	node := p.Lab.Nodes[1]
	for _, r := range []struct {
		on   *netlab.Host
		args string
	}{
		{pod, "local " + many + " dev lo"},
		{node.Host, many + " via " + pod.Addr(4).String() + " dev " + netlab.PodInterfacePrefix + "1 onlink"},
		{p.Lab.Router(), many + " via " + node.Addr(4).String()},
	} {
		if _, err := r.on.Run(ctx, "ip", append([]string{"route", "add"}, strings.Fields(r.args)...)...); err != nil {
			return err
		}
	}
	return p.Remote.ServeBlocks()
}

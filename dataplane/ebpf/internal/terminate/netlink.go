package terminate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// byNetlink ends sockets by SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY). It knows a
// socket's peer, not the Service that it asked for.
type byNetlink struct {
	gone map[netip.AddrPort]struct{}
	n    int
}

func (*byNetlink) most() int { return math.MaxInt }

func (b *byNetlink) begin(gone []Endpoint) error {
	b.gone, b.n = map[netip.AddrPort]struct{}{}, 0
	for _, e := range gone {
		if e.Protocol == dataplane.TCP {
			b.gone[e.Addr] = struct{}{}
		}
	}
	return nil
}

func (b *byNetlink) sockets() error {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} { // IPv6 lists IPv4-mapped sockets too
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			errs = append(errs, fmt.Errorf("listing TCP sockets: %w", err))
		}
		for _, s := range sockets {
			to, ok := netip.AddrFromSlice(s.ID.Destination)
			if _, gone := b.gone[netip.AddrPortFrom(to.Unmap(), s.ID.DestinationPort)]; !ok || !gone || !waits(s) {
				continue
			}
			if err := destroy(s); err != nil {
				errs = append(errs, err)
				continue
			}
			b.n++
		}
	}
	return errors.Join(errs...)
}

// waits tells a socket that waits for its peer. Where the peer said the end
// itself, the client may have yet to read it.
func waits(s *netlink.Socket) bool {
	return s.State == netlink.TCP_ESTABLISHED || s.State == netlink.TCP_SYN_SENT
}

func (b *byNetlink) ended() (int, error) { return b.n, nil }

func (b *byNetlink) close() error { return nil }

// request is the kernel's struct inet_diag_req_v2.
type request []byte

// Len implements nl.NetlinkRequestData.
func (r request) Len() int { return len(r) }

// Serialize implements nl.NetlinkRequestData.
func (r request) Serialize() []byte { return r }

func destroy(s *netlink.Socket) error {
	r := make(request, 56)
	r[0], r[1] = s.Family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], 0xffffffff) // whatever its state
	binary.BigEndian.PutUint16(r[8:], s.ID.SourcePort)
	binary.BigEndian.PutUint16(r[10:], s.ID.DestinationPort)
	copy(r[12:28], address(s.Family, s.ID.Source))
	copy(r[28:44], address(s.Family, s.ID.Destination))
	binary.NativeEndian.PutUint32(r[44:], s.ID.Interface)
	binary.NativeEndian.PutUint32(r[48:], s.ID.Cookie[0])
	binary.NativeEndian.PutUint32(r[52:], s.ID.Cookie[1])
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(r)
	if _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ending the TCP socket to %s: %w", s.ID.Destination, err)
	}
	return nil
}

func address(family uint8, ip []byte) []byte {
	a, _ := netip.AddrFromSlice(ip)
	if family == unix.AF_INET {
		b := a.Unmap().As4()
		return b[:]
	}
	b := a.As16()
	return b[:]
}

package netlab

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// SCTP by hand, since a kernel may have no SCTP sockets: a client sends an
// INIT chunk and waits for the INIT ACK (RFC 9260 §3.3.2, §3.3.3), whose state
// cookie holds the server's greeting. Connection tracking takes the two for
// the start of an association and translates their addresses as it does those
// of a real one.
const (
	sctpHeader   = 12 // common header
	sctpInit     = 20 // INIT and INIT ACK chunk without parameters
	chunkInit    = 1
	chunkInitAck = 2
	paramCookie  = 7
	sctpWindow   = 1 << 16

	// strayWait is how long an answer may take that comes behind an error which
	// may be another probe's.
	strayWait = 100 * time.Millisecond
)

// sctpPacket is an INIT or INIT ACK.
type sctpPacket struct {
	from, to uint16
	tag      uint32 // verification tag: 0 in an INIT, the peer's initiate tag in an INIT ACK
	kind     byte
	initTag  uint32
	cookie   string
}

func (p sctpPacket) marshal() []byte {
	b := make([]byte, sctpHeader+sctpInit)
	binary.BigEndian.PutUint16(b, p.from)
	binary.BigEndian.PutUint16(b[2:], p.to)
	binary.BigEndian.PutUint32(b[4:], p.tag)
	chunk := b[sctpHeader:]
	chunk[0] = p.kind
	binary.BigEndian.PutUint32(chunk[4:], p.initTag)
	binary.BigEndian.PutUint32(chunk[8:], sctpWindow)
	binary.BigEndian.PutUint16(chunk[12:], 1)         // outbound streams
	binary.BigEndian.PutUint16(chunk[14:], 1)         // inbound streams
	binary.BigEndian.PutUint32(chunk[16:], p.initTag) // initial TSN
	length := sctpInit
	if p.cookie != "" {
		length += 4 + len(p.cookie)
		b = binary.BigEndian.AppendUint16(b, paramCookie)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(p.cookie)))
		b = append(b, p.cookie...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	binary.BigEndian.PutUint16(b[sctpHeader+2:], uint16(length))
	// The checksum alone of all fields is little-endian.
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func parseSCTP(b []byte) (sctpPacket, error) {
	if len(b) < sctpHeader+sctpInit {
		return sctpPacket{}, fmt.Errorf("an SCTP packet of %d bytes", len(b))
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	zeroed := append([]byte(nil), b...)
	clear(zeroed[8:12])
	if crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return sctpPacket{}, errors.New("an SCTP packet with a wrong checksum")
	}
	chunk := b[sctpHeader:]
	p := sctpPacket{
		from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		kind: chunk[0], initTag: binary.BigEndian.Uint32(chunk[4:]),
	}
	length := min(int(binary.BigEndian.Uint16(chunk[2:])), len(chunk))
	if length > sctpInit+4 && binary.BigEndian.Uint16(chunk[sctpInit:]) == paramCookie {
		p.cookie = string(chunk[sctpInit+4 : length])
	}
	return p, nil
}

// listenSCTP opens a raw socket for all SCTP packets to an address.
func listenSCTP(at netip.Addr) (*net.IPConn, error) {
	return net.ListenIP(sctpNetwork(at), &net.IPAddr{IP: at.AsSlice()})
}

func sctpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "ip4:132"
	}
	return "ip6:132"
}

// serveSCTP answers INITs to an address and port.
func serveSCTP(name string, at netip.AddrPort, heard *atomic.Int64) (io.Closer, error) {
	c, err := listenSCTP(at.Addr())
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromIP(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			p, err := parseSCTP(buf[:n])
			if err != nil || p.kind != chunkInit || p.to != at.Port() {
				continue
			}
			heard.Add(1)
			source, _ := netip.AddrFromSlice(from.IP)
			ack := sctpPacket{from: p.to, to: p.from, tag: p.initTag, kind: chunkInitAck, initTag: 1,
				cookie: greeting(name, netip.AddrPortFrom(source.Unmap(), p.from))}
			_, _ = c.WriteToIP(ack.marshal(), from) // the client counts what is lost
		}
	}()
	return c, nil
}

// sctpSession sends INITs from one port.
type sctpSession struct {
	conn *net.IPConn
	to   netip.AddrPort
	port uint16
}

func openSCTP(r Request, deadline time.Time) (*sctpSession, error) {
	// Connected, so that ICMP errors reach it.
	d := dialer(r, deadline)
	c, err := d.Dial(sctpNetwork(r.To.Addr()), r.To.Addr().String())
	if err != nil {
		return nil, err
	}
	s := &sctpSession{conn: c.(*net.IPConn), to: r.To, port: r.From.Port()}
	// Only now: before it was connected, it would have got the errors of others.
	raw, err := s.conn.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error { return reportAllErrors(fd, r) })
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

func randomNumber() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint32(b[:])
}

func (s *sctpSession) ask(deadline time.Time) (string, netip.AddrPort, error) {
	if err := s.conn.SetDeadline(deadline); err != nil {
		return "", netip.AddrPort{}, err
	}
	init := sctpPacket{from: s.port, to: s.to.Port(), kind: chunkInit, initTag: randomNumber() | 1}
	_, err := s.conn.Write(init.marshal())
	if err != nil && !filtered(err) { // what was pending is another probe's: once more
		_, err = s.conn.Write(init.marshal())
	}
	if err != nil && !filtered(err) {
		return "", netip.AddrPort{}, err
	}
	var stray error
	buf := make([]byte, 2048)
	for {
		n, _, err := s.conn.ReadFromIP(buf)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EPROTO): // of IPv4, of IPv6
			// A host without SCTP says so, and a raw socket gets that whichever
			// port it is about, so it may be late word of an earlier probe.
			if stray == nil {
				if err := s.conn.SetDeadline(time.Now().Add(strayWait)); err != nil {
					return "", netip.AddrPort{}, err
				}
			}
			stray = err
			continue
		case stray != nil:
			return "", netip.AddrPort{}, stray
		default:
			return "", netip.AddrPort{}, err
		}
		p, err := parseSCTP(buf[:n])
		if err != nil || p.kind != chunkInitAck || p.tag != init.initTag || p.to != s.port || p.from != s.to.Port() {
			continue
		}
		return parseGreeting(p.cookie)
	}
}

func (s *sctpSession) local() netip.AddrPort {
	a, _ := netip.AddrFromSlice(s.conn.LocalAddr().(*net.IPAddr).IP)
	return netip.AddrPortFrom(a.Unmap(), s.port)
}

// Close implements io.Closer.
func (s *sctpSession) Close() error { return s.conn.Close() }

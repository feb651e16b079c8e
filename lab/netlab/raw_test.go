package netlab

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Packets made by hand are taken for what they are: whole, in pieces in any
// order, and in a frame of their own; IPv4 and IPv6.
func TestPackets(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Pods: 1})
	const port = 8080
	server, client := l.Host("a1"), l.Host("outside")
	if _, err := server.Serve(UDP, port); err != nil {
		t.Fatal(err)
	}
	gateway, err := l.Router().HardwareAddr("outside")
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []int{4, 6} {
		p := Packet{Protocol: UDP, From: netip.AddrPortFrom(client.Addr(version), 1234), To: netip.AddrPortFrom(server.Addr(version), port), Payload: []byte(strings.Repeat("?", 2000))}
		short := p
		short.Payload = []byte("?")
		pieces := p.Fragments(7, 1000)
		if len(pieces) != 3 {
			t.Fatalf("2,008 bytes in pieces of 1,000 are %d", len(pieces))
		}
		for name, send := range map[string]func() error{
			"whole":  func() error { return client.Send(short.Whole()) },
			"pieces": func() error { return client.Send(pieces[2], pieces[0], pieces[1]) },
			"frame":  func() error { return client.SendFrame("eth0", gateway, short.Whole()) },
		} {
			if err := answeredAt(client, p.From, send); err != nil {
				t.Errorf("IPv%d, %s: %v", version, name, err)
			}
		}
	}
}

// answeredAt sends something and waits for an answer at a UDP port.
func answeredAt(h *Host, at netip.AddrPort, send func() error) error {
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := send(); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(Patient(2 * time.Second))); err != nil {
		return err
	}
	_, _, err = c.ReadFromUDPAddrPort(make([]byte, mostDatagram))
	return err
}

// A pod that is connected again is reached as before, and a prefix that is
// withdrawn is not.
func TestReconnectAndWithdraw(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Pods: 2})
	server, client, vip := l.Host("a2"), l.Host("outside"), netip.MustParseAddr("10.97.0.1")
	if _, err := server.Serve(TCP, 8080); err != nil {
		t.Fatal(err)
	}
	if err := l.Reconnect(server); err != nil {
		t.Fatal(err)
	}
	for _, a := range server.Addrs {
		if got, err := client.Ask(Request{Protocol: TCP, To: netip.AddrPortFrom(a, 8080)}); err != nil || got.Outcome != Answered {
			t.Errorf("%s after it was connected again: %s, %v", a, got, err)
		}
	}
	if err := l.Reconnect(client); err == nil {
		t.Error("an outside client was connected again")
	}
	if err := l.Announce(hostPrefix(vip), l.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	if err := l.Withdraw(hostPrefix(vip)); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Ask(Request{Protocol: TCP, To: netip.AddrPortFrom(vip, 8080)}); err != nil || got.Outcome != Unreachable {
		t.Errorf("a withdrawn address: %s, %v", got, err)
	}
}

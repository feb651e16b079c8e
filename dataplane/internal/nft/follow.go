package nft

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// group is NFNLGRP_NFTABLES, where the kernel says what each transaction changed.
const group = 7

// Follower hears what anybody changes in nftables, in one network namespace.
type Follower struct{ socket *netlink.Conn }

// Follow begins to listen.
func Follow() (*Follower, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (group - 1)})
	if err != nil {
		return nil, fmt.Errorf("listening to nftables: %w", err)
	}
	if err := c.SetReadBuffer(socketBuffer); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("listening to nftables: %w", err)
	}
	return &Follower{socket: c}, nil
}

// Pause stops listening until Resume: the kernel need not say what we know.
func (f *Follower) Pause() error { return f.socket.LeaveGroup(group) }

// Resume listens again.
func (f *Follower) Resume() error { return f.socket.JoinGroup(group) }

// Close ends a Next that waits.
func (f *Follower) Close() error { return f.socket.Close() }

// Notice is a change of a table.
type Notice struct {
	Family dataplane.Family
	Table  string
	PortID uint32 // of the netlink socket that asked for it
}

// Next waits for changes to tables of a name. An error may mean that changes
// were missed.
func (f *Follower) Next(table string) ([]Notice, error) {
	return f.next(func(name string, _ netlink.Message) bool { return name == table })
}

// NextNaming waits for changes to objects with one of these words in their
// names, to rules that lead to such, and to whole tables. An error may mean that
// changes were missed.
func (f *Follower) NextNaming(words ...string) ([]Notice, error) {
	return f.next(func(_ string, m netlink.Message) bool {
		if m.Header.Type == messageType(unix.NFT_MSG_DELTABLE) { // newer kernels name nothing in it
			return true
		}
		return slices.ContainsFunc(words, func(w string) bool { return bytes.Contains(m.Data, []byte(w)) })
	})
}

// next waits for changes that count, which are given with the name of their table.
func (f *Follower) next(counts func(table string, m netlink.Message) bool) ([]Notice, error) {
	messages, err := f.socket.Receive()
	if err != nil {
		return nil, err
	}
	var out []Notice
	for _, m := range messages {
		// The first attribute of each message but that about the generation is the table.
		name, ok := attribute(m, unix.NFTA_TABLE_NAME)
		if !ok || m.Header.Type == messageType(unix.NFT_MSG_NEWGEN) {
			continue
		}
		table := strings.TrimRight(string(name), "\x00")
		if !counts(table, m) {
			continue
		}
		n := Notice{Table: table, PortID: m.Header.PID}
		switch m.Data[0] {
		case unix.NFPROTO_IPV4:
			n.Family = dataplane.IPv4
		case unix.NFPROTO_IPV6:
			n.Family = dataplane.IPv6
		default:
			continue
		}
		out = append(out, n)
	}
	return out, nil
}

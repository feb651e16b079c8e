package nft

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// Follower hears what anybody changes in nftables, in one network namespace.
type Follower struct{ *follow.Follower }

// Follow begins to listen.
func Follow() (*Follower, error) {
	f, err := follow.Start(follow.Source{Protocol: unix.NETLINK_NETFILTER, Groups: []uint32{unix.NFNLGRP_NFTABLES}, Buffer: socketBuffer})
	if err != nil {
		return nil, fmt.Errorf("listening to nftables: %w", err)
	}
	return &Follower{f}, nil
}

// Notice is a change of a table.
type Notice struct {
	Family dataplane.Family
	Table  string
	PortID uint32 // of the netlink socket that asked for it
}

// Next waits for changes to tables of a name. An error means that changes may
// have been missed, or that the follower was closed.
func (f *Follower) Next(table string) ([]Notice, error) {
	return f.next(func(name string, _ netlink.Message) bool { return name == table })
}

// NextNaming waits for changes to objects with one of these words in their
// names, to rules that lead to such, and to whole tables. An error means what it
// does for Next.
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
	messages, err := f.Follower.Next(context.Background())
	if err != nil {
		return nil, err
	}
	var out []Notice
	for _, heard := range messages {
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(heard.Type), PID: heard.PortID}, Data: heard.Body}
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

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// messageType returns the type of a netlink message of nftables.
func messageType(message int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message)
}

// commits counts the transactions that the kernel has made for some tables. Each
// moves the generation by one.
type commits struct {
	mu   sync.Mutex // held while one is under way
	made uint32
}

// count sends a transaction and counts it. One that failed may have been made all
// the same: as it is not counted, it passes for somebody else's.
func (c *commits) count(send func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := send()
	if err == nil {
		c.made++
	}
	return err
}

// moment is a state of nftables.
type moment struct {
	generation uint32
	foreign    uint32 // moves by one for each transaction that is not counted as ours
}

// now returns the state that nftables has between two transactions of ours.
func (t *Table) now() (moment, error) {
	t.commits.mu.Lock() // so that each of ours is either counted or not made yet
	defer t.commits.mu.Unlock()
	generation, err := t.generation()
	return moment{generation, generation - t.commits.made}, err
}

// generation returns a number that each transaction of anybody changes.
func (t *Table) generation() (uint32, error) {
	answers, err := t.socket.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   make([]byte, headerLen),
	})
	if err != nil {
		return 0, fmt.Errorf("asking nftables for its generation: %w", err)
	}
	for _, m := range answers {
		if id, ok := attribute(m, unix.NFTA_GEN_ID); ok && len(id) >= 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("nftables does not say its generation")
}

// enlargeDumps has the kernel send dumps in messages of 32 KiB. It makes them as
// large as the largest buffer that a socket was read with, and begins to walk a
// set from the start for each: with the library's 4 KiB a set of 100,000 elements
// takes eight times as long.
func enlargeDumps(c *netlink.Conn) error {
	ask := netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   make([]byte, headerLen),
	}
	if _, err := c.Send(ask); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buffer := make([]byte, 64<<10)
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		_, _, failed = unix.Recvfrom(int(fd), buffer, 0)
		return !errors.Is(failed, unix.EAGAIN)
	})
	return errors.Join(err, failed)
}

// headerLen is the length of what precedes the attributes of a netfilter message.
const headerLen = 4

// attribute returns an attribute of a netfilter message.
func attribute(m netlink.Message, kind uint16) ([]byte, bool) {
	if len(m.Data) < headerLen {
		return nil, false
	}
	attributes, err := netlink.NewAttributeDecoder(m.Data[headerLen:])
	if err != nil {
		return nil, false
	}
	for attributes.Next() {
		if attributes.Type() == kind {
			return attributes.Bytes(), true
		}
	}
	return nil, false
}

// portIDOf returns the number by which the kernel knows a netlink socket.
func portIDOf(c *netlink.Conn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var id uint32
	var failed error
	err = raw.Control(func(fd uintptr) {
		addr, err := unix.Getsockname(int(fd))
		if nl, ok := addr.(*unix.SockaddrNetlink); ok {
			id = nl.Pid
		}
		failed = err
	})
	return id, errors.Join(err, failed)
}

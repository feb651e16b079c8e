package costs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// answerTime is how long an answer to a packet may take.
const answerTime = 2 * time.Second

// tracer reads what the kernel says of packets with nftrace.
type tracer struct {
	events, questions *netlink.Conn
}

// openTracer opens a tracer in the thread's network namespace.
func openTracer() (*tracer, error) {
	events, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	if err := events.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		return nil, errors.Join(fmt.Errorf("asking for traces: %w", err), events.Close())
	}
	questions, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink: %w", err), events.Close())
	}
	return &tracer{events, questions}, nil
}

func (t *tracer) close() error { return errors.Join(t.events.Close(), t.questions.Close()) }

// steps returns what the kernel has said so far. Of a packet that was answered it has
// said all, so that nothing is waited for.
func (t *tracer) steps() (out []step, err error) {
	raw, err := t.events.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reading traces: %w", err)
	}
	buf := make([]byte, 1<<16)
	readErr := raw.Read(func(fd uintptr) bool {
		for err == nil {
			var n int
			if n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err == nil {
				out, err = appendSteps(out, buf[:n])
			}
		}
		return true
	})
	if err = errors.Join(readErr, err); !errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("reading traces: %w", err)
	}
	return out, nil
}

// appendSteps adds the steps in what was read at once.
func appendSteps(to []step, data []byte) ([]step, error) {
	messages, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		s, err := parseStep(m.Data)
		if err != nil {
			return nil, err
		}
		to = append(to, s)
	}
	return to, nil
}

// headSize is how long the header of nfnetlink is. The family is its first byte.
const headSize = 4

// parseStep reads one trace message.
func parseStep(data []byte) (step, error) {
	var s step
	if len(data) < headSize {
		return s, errors.New("a short message")
	}
	s.at.family = data[0]
	ad, err := decoder(data)
	if err != nil {
		return s, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_TRACE_TABLE:
			s.at.table = ad.String()
		case unix.NFTA_TRACE_CHAIN:
			s.at.chain = ad.String()
		case unix.NFTA_TRACE_RULE_HANDLE:
			s.handle = ad.Uint64()
		case unix.NFTA_TRACE_TYPE:
			s.kind = ad.Uint32()
		case unix.NFTA_TRACE_VERDICT:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case unix.NFTA_VERDICT_CODE:
						s.code = int32(ad.Uint32())
					case unix.NFTA_VERDICT_CHAIN:
						s.to = ad.String()
					}
				}
				return nil
			})
		}
	}
	return s, ad.Err()
}

// decoder reads the attributes after the header, which are in network byte order.
func decoder(data []byte) (*netlink.AttributeDecoder, error) {
	ad, err := netlink.NewAttributeDecoder(data[headSize:])
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}

// handles lists the rules of a chain, in order.
func (t *tracer) handles(c chainName) ([]uint64, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_RULE_TABLE, c.table)
	ae.String(unix.NFTA_RULE_CHAIN, c.chain)
	attributes, err := ae.Encode()
	if err != nil {
		return nil, fmt.Errorf("listing chain %s: %w", c.chain, err)
	}
	answers, err := t.questions.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{c.family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	})
	if err != nil {
		return nil, fmt.Errorf("listing chain %s: %w", c.chain, err)
	}
	out := []uint64{}
	for _, m := range answers {
		ad, err := decoder(m.Data)
		if err != nil {
			return nil, fmt.Errorf("listing chain %s: %w", c.chain, err)
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_RULE_HANDLE {
				out = append(out, ad.Uint64())
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("listing chain %s: %w", c.chain, err)
		}
	}
	return out, nil
}

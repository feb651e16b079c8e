package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/internal/follow"
)

// Outline is the shape of any table, also one that holds what no other program
// understands: its chains and which rule leads from one to another.
type Outline struct {
	Chains []string
	Rules  []OutlineRule // in the kernel's order
}

// OutlineRule is a rule that leads to a chain.
type OutlineRule struct {
	Chain  string
	Handle uint64
	Target string
}

// ReadOutline reads the outline of a table. A table that does not exist has an empty one.
func ReadOutline(f dataplane.Family, table string) (*Outline, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer func() { _ = c.Close() }()
	return follow.Whole(func() (*Outline, error) { return readOutline(c, f, table) })
}

func readOutline(c *netlink.Conn, f dataplane.Family, table string) (*Outline, error) {
	o := &Outline{}
	name := netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(table), 0)}
	chains, err := dump(c, f, unix.NFT_MSG_GETCHAIN, nil)
	if err != nil {
		return nil, fmt.Errorf("listing chains of %s: %w", f, err)
	}
	for _, m := range chains {
		if in, _ := attribute(m, unix.NFTA_CHAIN_TABLE); text(in) == table {
			chain, _ := attribute(m, unix.NFTA_CHAIN_NAME)
			o.Chains = append(o.Chains, text(chain))
		}
	}
	if len(o.Chains) == 0 {
		return o, nil
	}
	rules, err := dump(c, f, unix.NFT_MSG_GETRULE, []netlink.Attribute{name})
	if err != nil {
		return nil, fmt.Errorf("listing rules of the table %s of %s: %w", table, f, err)
	}
	for _, m := range rules {
		chain, _ := attribute(m, unix.NFTA_RULE_CHAIN)
		handle, ok := attribute(m, unix.NFTA_RULE_HANDLE)
		expressions, _ := attribute(m, unix.NFTA_RULE_EXPRESSIONS)
		if target := verdictChain(expressions); ok && len(handle) == 8 && target != "" {
			o.Rules = append(o.Rules, OutlineRule{Chain: text(chain), Handle: binary.BigEndian.Uint64(handle), Target: target})
		}
	}
	return o, nil
}

// dump asks for all objects of one kind.
func dump(c *netlink.Conn, f dataplane.Family, message int, attributes []netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(message), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(TableFamily(f)), 0, 0, 0}, data...),
	})
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		if m.Header.Flags&netlink.HeaderFlags(unix.NLM_F_DUMP_INTR) != 0 {
			return nil, follow.ErrInterrupted
		}
	}
	return answers, nil
}

// verdictChain returns the chain that a rule's expressions lead to; "": none. It
// passes over all expressions that it does not know.
func verdictChain(expressions []byte) string {
	target := ""
	for _, e := range nested(expressions) {
		var name string
		for _, part := range nested(e.Data) {
			switch {
			case part.Type == unix.NFTA_EXPR_NAME:
				name = text(part.Data)
			case part.Type == unix.NFTA_EXPR_DATA && name == "immediate":
				verdict := find(find(part.Data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
				if chain := text(find(verdict, unix.NFTA_VERDICT_CHAIN)); chain != "" {
					target = chain
				}
			}
		}
	}
	return target
}

// nested returns the attributes in an attribute, without the bits of their types
// that are flags.
func nested(b []byte) []netlink.Attribute {
	all, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return nil
	}
	for i := range all {
		all[i].Type &= 0x3fff
	}
	return all
}

func find(b []byte, kind uint16) []byte {
	for _, a := range nested(b) {
		if a.Type == kind {
			return a.Data
		}
	}
	return nil
}

// text returns a string as netlink has it, less the zero at its end.
func text(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		return string(b[:n-1])
	}
	return string(b)
}

// DeleteRules removes rules of a table by their handles. A rule that is gone is no error.
func DeleteRules(f dataplane.Family, table string, rules []OutlineRule) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := &nftables.Table{Family: TableFamily(f), Name: table}
	for _, r := range rules {
		err := c.DelRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: r.Chain, Table: t}, Handle: r.Handle})
		if err == nil {
			err = c.Flush()
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing a rule of the chain %s of the table %s of %s: %w", r.Chain, table, f, err)
		}
	}
	return nil
}

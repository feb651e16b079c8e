package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// errIncompatible says that iptables does not list a table. It still writes it.
var errIncompatible = errors.New("another program keeps rules there that iptables cannot list")

// unknownRule stands for the rules of a chain that only the outline tells of.
const unknownRule = "?\n"

// outline takes what the kernel says of a table that iptables-nft cannot list:
// our chains, and which rules lead to them.
func (s *saved) outline(f dataplane.Family, table string) error {
	o, err := nft.ReadOutline(f, table)
	if err != nil {
		return fmt.Errorf("%w; nor by netlink: %w", s.unread, err)
	}
	clear(s.chains)
	s.jumps = nil
	for _, chain := range o.Chains {
		if s.owns(chain) {
			s.chains[chain] = unknownRule
		}
	}
	for _, r := range o.Rules {
		rule := "-j " + r.Target
		if _, ours := s.chains[r.Chain]; ours {
			s.chains[r.Chain] += rule + "\n"
		} else if s.owns(r.Target) {
			s.jumps = append(s.jumps, builtinRule{chain: r.Chain, rule: rule, handle: r.Handle})
		}
	}
	return nil
}

// unreadTables returns the tables whose rules are not known, and why.
func unreadTables(have map[string]*saved) (tables []string, reason error) {
	for _, table := range []string{tableFilter, tableNAT} {
		if have[table].unread != nil {
			tables, reason = append(tables, table), have[table].unread
		}
	}
	return tables, reason
}

// assume has the chains of tables that cannot be read hold what was written last
// for these ServicePorts, so that a repair writes only those that are gone.
func assume(have map[string]*saved, tables []string, e env, ports []change) {
	d := newDelta()
	newModel(e).start(ports, d)
	for _, table := range tables {
		for _, c := range d.write[table] {
			if _, there := have[table].chains[c.name]; there {
				have[table].chains[c.name] = c.body
			}
		}
	}
}

// served returns the ServicePorts that a model stands for.
func (m *model) served() []change {
	out := make([]change, 0, len(m.owners))
	for _, p := range m.owners {
		out = append(out, change{new: p})
	}
	return out
}

// read reads a half's tables back for a Sync. It reports once those whose rules
// cannot be compared with what is wanted.
func (h *half) read(ctx context.Context) (map[string]*saved, error) {
	have, err := h.commands.read(ctx)
	if err != nil {
		return nil, err
	}
	tables, reason := unreadTables(have)
	if len(tables) > 0 && h.model != nil {
		assume(have, tables, h.model.env, h.model.served())
	}
	if len(tables) > 0 && !slices.Equal(tables, h.unread) {
		h.log.Warn("iptables cannot list some tables; they are programmed, but only missing chains and jumps are noticed", "tables", tables, "error", reason)
	}
	h.unread = tables
	return have, nil
}

// list lists one chain. iptables does so even where it does not list the table.
func (c *commands) list(ctx context.Context, table, chain string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.most)
	defer cancel()
	out, err := command(ctx, c.path, "-t", table, "-S", chain).Output()
	if err != nil {
		return "", fmt.Errorf("listing the chain %s with %s: %w", chain, c.path, err)
	}
	var body bytes.Buffer
	for line := range strings.Lines(string(out)) {
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			body.WriteString(rule)
		}
	}
	return body.String(), nil
}

// write carries out a transaction: first the removal of rules whose text is not
// known, by the kernel's own numbers for them.
func (c *commands) write(ctx context.Context, tx *transaction) error {
	for table, t := range tx.tables {
		var rules []nft.OutlineRule
		for _, d := range t.deletes {
			if d.handle != 0 {
				rules = append(rules, nft.OutlineRule{Chain: d.chain, Handle: d.handle})
			}
		}
		if len(rules) == 0 {
			continue
		}
		if err := nft.DeleteRules(c.family, table, rules); err != nil {
			return err
		}
		t.deletes = slices.DeleteFunc(t.deletes, func(d builtinRule) bool { return d.handle != 0 })
	}
	return c.restore(ctx, tx.text())
}

package iptables

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// RemoveChains removes another program's chains, those that owns tells, with the
// rules of built-in chains that lead to them: of both variants and both
// families, from the tables filter, nat and mangle. A chain that a third
// program's chain leads to stays as it is, with all that it leads to.
func RemoveChains(ctx context.Context, log *slog.Logger, owns func(chain string) bool) error {
	return everyVariant(ctx, Options{}, log, func(ctx context.Context, cmds *commands, f dataplane.Family) error {
		if !cmds.inUse(f) {
			return nil
		}
		have := map[string]*saved{}
		for _, table := range []string{tableFilter, tableNAT, tableMangle} {
			have[table] = newSaved()
			have[table].owns = owns
		}
		if err := cmds.readInto(ctx, have); err != nil {
			return err
		}
		tx := &transaction{}
		for table, s := range have {
			for _, chain := range s.keepUsed() {
				log.Warn("a chain is left, as another program's rules lead to it", "table", table, "chain", chain, "variant", string(cmds.variant), "family", f.String())
			}
			s.removeAll(tx.table(table))
		}
		if tx.trim(); tx.empty() {
			return nil
		}
		chains, _ := tx.size()
		log.Info("removing chains", "chains", chains, "variant", string(cmds.variant), "family", f.String())
		return cmds.write(ctx, tx)
	})
}

// keepUsed forgets the chains that others' chains lead to, and gives their names.
func (s *saved) keepUsed() []string {
	var used []string
	var keep func(chain string)
	keep = func(chain string) {
		body, ours := s.chains[chain]
		if !ours {
			return
		}
		used = append(used, chain)
		delete(s.chains, chain)
		for rule := range strings.Lines(body) {
			keep(targetOf(strings.TrimSpace(rule)))
		}
	}
	for _, j := range s.jumps {
		if !isBuiltin(j.chain) {
			keep(targetOf(j.rule))
		}
	}
	s.jumps = slices.DeleteFunc(s.jumps, func(j builtinRule) bool { return slices.Contains(used, targetOf(j.rule)) })
	return used
}

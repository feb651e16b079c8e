package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// mostTries bounds the tries in search of refused ServicePorts.
const mostTries = 2000

// trialNames gives each of our chains a stand-in to which nothing leads.
func trialNames() *strings.Replacer {
	return strings.NewReplacer(
		prefixPool, "SY-U-", prefixEntry, "SY-V-", prefixSources, "SY-W-", ownPrefix, prefixTrial)
}

// try finds the ServicePorts that iptables or the kernel refuses, by writing
// their rules to chains that nothing leads to. Nothing that forwards is touched.
func (h *half) try(ctx context.Context, changes []change, e *env) (refused, error) {
	bad := refused{}
	groups := slices.Collect(slices.Chunk(h.trials(changes, e), stageSize/2))
	for tries := 0; len(groups) > 0; tries++ {
		group := groups[len(groups)-1]
		groups = groups[:len(groups)-1]
		if len(group) == 0 {
			continue
		}
		if tries == mostTries {
			return nil, fmt.Errorf("finding the refused Service ports: not done after %d tries", tries)
		}
		no, err := h.tryGroup(ctx, group)
		switch {
		case err != nil:
			return nil, err
		case no == nil:
		case len(group) == 1:
			bad[group[0].id] = no
		default:
			groups = append(groups, split(group, no, bad)...)
		}
	}
	return bad, nil
}

// split parts a refused group: the ServicePorts at the lines of the error are
// to blame, or else it is one of either half.
func split(group []trial, no *refusal, bad refused) [][]trial {
	var rest []trial
	for _, t := range group {
		if slices.ContainsFunc(no.lines, t.wrote) {
			bad[t.id] = no
		} else {
			rest = append(rest, t)
		}
	}
	if len(rest) < len(group) {
		return [][]trial{rest}
	}
	middle := len(group) / 2
	return [][]trial{group[:middle], group[middle:]}
}

// trial is one ServicePort's rules under other names.
type trial struct {
	id          dataplane.PortID
	chains      []chain
	rules       []string // of the trees
	first, last int      // lines of the input that are its
}

func (t trial) wrote(line int) bool { return t.first <= line && line <= t.last }

func (h *half) trials(changes []change, e *env) []trial {
	var out []trial
	names := trialNames()
	m := newModel(*e)
	for _, c := range changes {
		if c.new == nil {
			continue
		}
		r := renderPort(c.new, e)
		t := trial{id: c.id()}
		for _, ch := range r.chains {
			t.chains = append(t.chains, chain{name: names.Replace(ch.name), body: names.Replace(ch.body)})
		}
		for _, en := range r.entries {
			t.rules = append(t.rules, names.Replace(string(m.treeOf(en).rule(nil, "", en.key, en.value))))
		}
		out = append(out, t)
	}
	return out
}

// tryGroup writes a group of trials and removes them again. A nil refusal
// means that all are fine.
func (h *half) tryGroup(ctx context.Context, group []trial) (*refusal, error) {
	const dispatch = prefixTrial + "DISPATCH"
	chains := map[string]bool{dispatch: true}
	names := trialNames()
	for _, c := range natConstants(&env{family: h.family, marks: h.marks}) {
		chains[names.Replace(c.name)] = true
	}
	for _, t := range group {
		for _, c := range t.chains {
			chains[c.name] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(chains))
	var in bytes.Buffer
	in.WriteString("*" + tableNAT + "\n")
	for _, name := range sorted {
		in.WriteString(":" + name + " - [0:0]\n")
	}
	line := len(sorted) + 1
	for i := range group {
		t := &group[i]
		start := in.Len()
		for _, c := range t.chains {
			writeRules(&in, c)
		}
		writeRules(&in, chain{name: dispatch, body: strings.Join(t.rules, "")})
		t.first = line + 1
		line += bytes.Count(in.Bytes()[start:], []byte("\n"))
		t.last = line
	}
	in.WriteString("COMMIT\n")
	err := h.commands.restore(ctx, in.Bytes())
	if no := (*refusal)(nil); errors.As(err, &no) {
		return no, nil
	}
	if err != nil {
		return nil, err
	}
	tx := &transaction{}
	tx.table(tableNAT).remove = sorted
	return nil, h.commands.restore(ctx, tx.text())
}

package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// copy returns what drift needs of a half.
func (h *half) copy() *half {
	return &half{
		family: h.family, commands: h.commands, log: h.log, marks: h.marks, localhost: h.localhost,
		model: &model{env: h.model.env}, warned: true, stale: slices.Clone(h.stale),
	}
}

// known returns the half of a family whose tables are known; nil: they are not.
func (n *noted) known(f dataplane.Family) *half {
	if n == nil {
		return nil
	}
	if i := slices.IndexFunc(n.halves, func(h *half) bool { return h.family == f }); i >= 0 {
		return n.halves[i]
	}
	return nil
}

// Observe implements dataplane.Backend. It follows the chains from the hooks as
// a packet would, so what nothing leads to is not seen. Where it is known what
// the tables should hold, all of them is compared with that.
func (b *backend) Observe(ctx context.Context) (*dataplane.Observation, error) {
	o := &dataplane.Observation{Whole: true}
	for _, h := range b.halves {
		if b.Rests(h.family) {
			continue
		}
		have, err := h.commands.read(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.family, err)
		}
		noted := b.noted.Load() // a Sync may have ended since
		known := noted.known(h.family)
		unread, reason := unreadTables(have)
		if len(unread) > 0 && known == nil {
			return nil, fmt.Errorf("%s: %w", h.family, reason)
		}
		if known != nil {
			if len(unread) > 0 {
				assume(have, unread, known.model.env, portsOf(noted.held, h.family))
			}
			drift, err := known.copy().drift(have, noted.held)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", h.family, err)
			}
			o.Other = append(o.Other, drift...)
			o.Whole = o.Whole && len(known.stale) == 0 && len(unread) == 0
		} else {
			o.Whole = false
		}
		w := walker{family: h.family, saved: have[tableNAT], pools: map[string]way{}}
		if err := w.walk(); err != nil {
			o.Other = append(o.Other, fmt.Sprintf("%s: %v", h.family, err))
		}
		o.Frontends = append(o.Frontends, w.frontends...)
		if len(w.frontends) == 0 {
			continue
		}
		if err := have[tableFilter].enforces(); err != nil {
			o.Other = append(o.Other, fmt.Sprintf("%s: %v", h.family, err))
		}
	}
	o.Sort()
	return o, nil
}

// errVerdicts says that frontends without endpoints would not refuse anybody.
var errVerdicts = errors.New("the rules that reject and drop are missing")

// enforces checks that the filter table carries out the verdicts.
func (s *saved) enforces() error {
	for _, j := range jumps() {
		if j.table != tableFilter {
			continue
		}
		if !s.leads(j.from, j.to) || !strings.Contains(s.chains[j.to], " -j "+chainVerdict+"\n") {
			return fmt.Errorf("%w: %s", errVerdicts, j.from)
		}
	}
	if s.chains[chainVerdict] == "" {
		return fmt.Errorf("%w: %s", errVerdicts, chainVerdict)
	}
	return nil
}

// leads tells whether a built-in chain jumps to one of ours.
func (s *saved) leads(from, to string) bool {
	return slices.ContainsFunc(s.jumps, func(r builtinRule) bool { return r.chain == from && targetOf(r.rule) == to })
}

// walker follows the chains of the nat table.
type walker struct {
	family    dataplane.Family
	saved     *saved
	pools     map[string]way // by chain, those seen
	frontends []dataplane.ObservedFrontend
}

// way is where a chain of a ServicePort leads.
type way struct {
	pool, inside dataplane.ObservedPool
}

// mostSteps bounds the way through chains, whatever the kernel holds.
const mostSteps = 64

// errStrange says that a chain is not one that we write.
var errStrange = errors.New("a rule that Switchyard does not write")

func (w *walker) walk() error {
	if !w.saved.leads("PREROUTING", chainServices) || !w.saved.leads("OUTPUT", chainServices) {
		return nil
	}
	services := w.saved.chains[chainServices]
	if strings.Contains(services, "-j "+chainFrontends+"\n") {
		if err := w.tree(chainFrontends, seen{}, mostSteps); err != nil {
			return err
		}
	}
	if strings.Contains(services, "-j "+chainAddresses+"\n") {
		return w.tree(chainNodePorts, seen{addr: w.family.Unspecified()}, mostSteps)
	}
	return nil
}

// seen is what the rules on the way have matched.
type seen struct {
	addr     netip.Addr
	protocol dataplane.Protocol
	port     uint16
}

// tree walks a node of a tree and what is below it.
func (w *walker) tree(chain string, before seen, steps int) error {
	if steps == 0 {
		return fmt.Errorf("chain %s: %w: a loop", chain, errStrange)
	}
	for line := range strings.Lines(w.saved.chains[chain]) {
		r, err := parseRule(line)
		if err != nil {
			return fmt.Errorf("chain %s: %w", chain, err)
		}
		at := before.with(r)
		switch {
		case strings.HasPrefix(r.target, prefixFrontend), strings.HasPrefix(r.target, prefixNodePort):
			err = w.tree(r.target, at, steps-1)
		default:
			err = w.frontend(r.target, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) frontend(chain string, at seen) error {
	found, err := w.way(chain, mostSteps)
	if err != nil {
		return err
	}
	w.frontends = append(w.frontends, dataplane.ObservedFrontend{
		Protocol: at.protocol,
		Addr:     netip.AddrPortFrom(at.addr, at.port),
		Pool:     found.pool,
		Inside:   found.inside,
	})
	return nil
}

func (s seen) with(r rule) seen {
	if r.dst.IsValid() && r.dst.IsSingleIP() {
		s.addr = r.dst.Addr()
	}
	if r.protocol != 0 {
		s.protocol = r.protocol
	}
	if r.port != 0 {
		s.port = r.port
	}
	return s
}

// way follows a ServicePort's own chains to its endpoints.
func (w *walker) way(chain string, steps int) (way, error) {
	if found, ok := w.pools[chain]; ok {
		return found, nil
	}
	if steps == 0 {
		return way{}, fmt.Errorf("chain %s: %w: a loop", chain, errStrange)
	}
	body, ok := w.saved.chains[chain]
	if !ok {
		return way{}, fmt.Errorf("chain %s: %w", chain, errStrange)
	}
	var found way
	var err error
	switch chain {
	case chainReject:
	case chainDrop:
		found.pool.IfEmpty, found.inside.IfEmpty = dataplane.Drop, dataplane.Drop
	default:
		found, err = w.rules(chain, body, steps)
	}
	if err == nil {
		w.pools[chain] = found
	}
	return found, err
}

// rules reads a pool, entry or sources chain. Of several gotos the last one is
// for clients from outside and those before it for the node and its pods; but in
// a sources chain, the last one is for those that may not come in.
func (w *walker) rules(chain, body string, steps int) (way, error) {
	var found way
	var gotos []string
	for line := range strings.Lines(body) {
		r, err := parseRule(line)
		if err != nil {
			return way{}, fmt.Errorf("chain %s: %w", chain, err)
		}
		switch {
		case r.target == "DNAT":
			if !r.affinity {
				found.pool.Endpoints = append(found.pool.Endpoints, r.to)
			}
		case r.isGoto:
			gotos = append(gotos, r.target)
		}
	}
	found.inside = found.pool
	if len(gotos) == 0 {
		return found, nil
	}
	if strings.HasPrefix(chain, prefixSources) {
		return w.way(gotos[0], steps-1)
	}
	pool, err := w.way(gotos[len(gotos)-1], steps-1)
	if err != nil {
		return way{}, err
	}
	inside := pool
	if len(gotos) > 1 {
		inside, err = w.way(gotos[len(gotos)-2], steps-1)
	}
	return way{pool: pool.pool, inside: inside.inside}, err
}

// rule is what Observe needs to know of a rule.
type rule struct {
	dst      netip.Prefix
	protocol dataplane.Protocol
	port     uint16 // of a range, 0
	affinity bool   // for a client that was there before
	target   string
	isGoto   bool
	to       netip.AddrPort // of DNAT
}

// parseRule reads a rule as iptables-save prints it, without "-A chain".
func parseRule(line string) (rule, error) {
	var r rule
	words := strings.Fields(line)
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		var err error
		switch words[i] {
		case "--comment": // the text may contain anything
			i = endOfQuote(words, i+1)
		case "-d":
			r.dst, err = parsePrefix(value)
		case "-p":
			r.protocol = parseProtocol(value)
		case "--dport":
			if !strings.Contains(value, ":") {
				var port uint64
				port, err = strconv.ParseUint(value, 10, 16)
				r.port = uint16(port)
			}
		case "--update":
			r.affinity = true
		case "-j", "-g":
			r.target, r.isGoto = value, words[i] == "-g"
		case "--to-destination":
			r.to, err = netip.ParseAddrPort(value)
		}
		if err != nil {
			return rule{}, fmt.Errorf("%w: %q: %w", errStrange, strings.TrimSpace(line), err)
		}
	}
	if r.target == "" {
		return rule{}, fmt.Errorf("%w: %q", errStrange, strings.TrimSpace(line))
	}
	return r, nil
}

// endOfQuote is the index of the last word of a text that may be in quotes.
func endOfQuote(words []string, i int) int {
	if i >= len(words) || !strings.HasPrefix(words[i], `"`) {
		return i
	}
	for j := i; j < len(words); j++ {
		if strings.HasSuffix(words[j], `"`) && (j > i || len(words[j]) > 1) {
			return j
		}
	}
	return len(words)
}

func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen()), err
	}
	return netip.ParsePrefix(s)
}

func parseProtocol(s string) dataplane.Protocol {
	switch s {
	case "tcp", "6":
		return dataplane.TCP
	case "udp", "17":
		return dataplane.UDP
	case "sctp", "132":
		return dataplane.SCTP
	}
	return 0
}

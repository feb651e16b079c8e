package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// readTables reads back what is ours.
func readTables(ctx context.Context, c *restore.Commands) (tables, error) {
	out, err := c.Read(ctx, isOwn, restore.Filter, restore.NAT)
	if err != nil {
		return nil, err
	}
	if filter := out[restore.Filter]; filter.Unread != nil && filter.Chains[chainInput] != "" {
		// It says who switched route_localnet on.
		filter.Chains[chainInput], err = c.List(ctx, restore.Filter, chainInput)
	}
	return out, err
}

// readBack reads the tables for a Sync. It reports once those whose rules cannot be
// compared with what is wanted.
func (f *familyBackend) readBack(ctx context.Context) (tables, error) {
	out, err := readTables(ctx, f.commands)
	if err != nil {
		return nil, err
	}
	unread, reason := out.unread()
	if len(unread) > 0 && f.held != nil {
		ports := make([]change, 0, len(f.held.ports))
		for _, p := range f.held.ports {
			ports = append(ports, change{new: p})
		}
		out.assume(unread, f.held.node, ports)
	}
	if len(unread) > 0 && !slices.Equal(unread, f.unread) {
		f.log.Warn("iptables cannot list some tables; they are programmed, but only missing chains and jumps are noticed", "tables", unread, "error", reason)
	}
	f.unread = unread
	return out, nil
}

// unread returns the names of the tables whose rules are not known, and why.
func (t tables) unread() (names []string, reason error) {
	for _, name := range []string{restore.Filter, restore.NAT} {
		if t[name].Unread != nil {
			names, reason = append(names, name), t[name].Unread
		}
	}
	return names, reason
}

// assume has the chains of tables that cannot be read hold what was written last
// for these ServicePorts, so that a repair writes only those that are missing.
func (t tables) assume(names []string, n node, ports []change) {
	d := newDiff(nil)
	newHeld(n).start(ports, d)
	for _, name := range names {
		for _, c := range d.writes.Table(name).Write {
			if _, there := t[name].Chains[c.Name]; there {
				t[name].Chains[c.Name] = c.Body
			}
		}
	}
}

// observe adds to o what the kernel holds of the family.
func (f *familyBackend) observe(ctx context.Context, o *dataplane.Observation) error {
	read, err := readTables(ctx, f.commands)
	if err != nil {
		return err
	}
	noted := f.noted.Load() // a Sync may have ended since
	unread, reason := read.unread()
	switch {
	case noted != nil:
		if len(unread) > 0 {
			read.assume(unread, noted.node, additions(noted.accepted, f.family))
		}
		drift, err := f.drift(read, noted)
		if err != nil {
			return err
		}
		o.Other = append(o.Other, drift...)
		o.Whole = o.Whole && len(noted.stale) == 0 && len(unread) == 0
	case len(unread) > 0:
		return reason
	default:
		o.Whole = false
	}
	w := walker{family: f.family, nat: read[restore.NAT], known: map[string]outcome{}}
	if err := w.walk(); err != nil {
		o.Other = append(o.Other, fmt.Sprintf("%s: %v", f.family, err))
	}
	o.Frontends = append(o.Frontends, w.frontends...)
	if len(w.frontends) == 0 {
		return nil
	}
	if err := enforces(read[restore.Filter]); err != nil {
		o.Other = append(o.Other, fmt.Sprintf("%s: %v", f.family, err))
	}
	return nil
}

// errVerdicts says that frontends without endpoints would not refuse anybody.
var errVerdicts = errors.New("the rules that reject and drop are missing")

// enforces returns an error unless the filter table carries out the verdicts.
func enforces(filter *restore.Table) error {
	for _, j := range jumpsOf(restore.Filter) {
		if !filter.Leads(j.From, j.To) || !strings.Contains(filter.Chains[j.To], " -j "+chainVerdict+"\n") {
			return fmt.Errorf("%w: %s", errVerdicts, j.From)
		}
	}
	if filter.Chains[chainVerdict] == "" {
		return fmt.Errorf("%w: %s", errVerdicts, chainVerdict)
	}
	return nil
}

// walker follows the chains of the nat table.
type walker struct {
	family    dataplane.Family
	nat       *restore.Table
	known     map[string]outcome // by chain
	frontends []dataplane.ObservedFrontend
}

// outcome is where a chain of a ServicePort leads.
type outcome struct {
	pool, inside dataplane.ObservedPool
}

// mostSteps bounds how many chains are followed, whatever the kernel holds.
const mostSteps = 64

func (w *walker) walk() error {
	if !w.nat.Leads("PREROUTING", chainServices) || !w.nat.Leads("OUTPUT", chainServices) {
		return nil
	}
	services := w.nat.Chains[chainServices]
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

// seen is what the rules so far have matched.
type seen struct {
	addr     netip.Addr
	protocol dataplane.Protocol
	port     uint16
}

// tree walks a node of a tree and what is below it.
func (w *walker) tree(chain string, before seen, steps int) error {
	if steps == 0 {
		return fmt.Errorf("chain %s: %w: a loop", chain, restore.ErrStrange)
	}
	for line := range strings.Lines(w.nat.Chains[chain]) {
		r, err := restore.ParseRule(line)
		if err != nil {
			return fmt.Errorf("chain %s: %w", chain, err)
		}
		at := before.with(r)
		switch {
		case strings.HasPrefix(r.Target, prefixFrontend), strings.HasPrefix(r.Target, prefixNodePort):
			err = w.tree(r.Target, at, steps-1)
		default:
			err = w.frontend(r.Target, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) frontend(chain string, at seen) error {
	found, err := w.follow(chain, mostSteps)
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

func (s seen) with(r restore.Rule) seen {
	if r.Dst.IsValid() && r.Dst.IsSingleIP() {
		s.addr = r.Dst.Addr()
	}
	if r.Protocol != 0 {
		s.protocol = r.Protocol
	}
	if r.Port != 0 {
		s.port = r.Port
	}
	return s
}

// follow follows a ServicePort's own chains to its endpoints.
func (w *walker) follow(chain string, steps int) (outcome, error) {
	if found, ok := w.known[chain]; ok {
		return found, nil
	}
	if steps == 0 {
		return outcome{}, fmt.Errorf("chain %s: %w: a loop", chain, restore.ErrStrange)
	}
	body, ok := w.nat.Chains[chain]
	if !ok {
		return outcome{}, fmt.Errorf("chain %s: %w", chain, restore.ErrStrange)
	}
	var found outcome
	var err error
	switch chain {
	case chainReject:
	case chainDrop:
		found.pool.IfEmpty, found.inside.IfEmpty = dataplane.Drop, dataplane.Drop
	default:
		found, err = w.rules(chain, body, steps)
	}
	if err == nil {
		w.known[chain] = found
	}
	return found, err
}

// rules reads a pool, choice or sources chain. Of several gotos the last one is
// for clients from outside and those before it for the node and its pods; but in
// a sources chain, the last one is for those that may not come in.
func (w *walker) rules(chain, body string, steps int) (outcome, error) {
	var found outcome
	var gotos []string
	for line := range strings.Lines(body) {
		r, err := restore.ParseRule(line)
		if err != nil {
			return outcome{}, fmt.Errorf("chain %s: %w", chain, err)
		}
		switch {
		case r.Target == "DNAT":
			if !r.Affinity {
				found.pool.Endpoints = append(found.pool.Endpoints, r.To)
			}
		case r.Goto:
			gotos = append(gotos, r.Target)
		}
	}
	found.inside = found.pool
	if len(gotos) == 0 {
		return found, nil
	}
	if strings.HasPrefix(chain, prefixSources) {
		return w.follow(gotos[0], steps-1)
	}
	pool, err := w.follow(gotos[len(gotos)-1], steps-1)
	if err != nil {
		return outcome{}, err
	}
	inside := pool
	if len(gotos) > 1 {
		inside, err = w.follow(gotos[len(gotos)-2], steps-1)
	}
	return outcome{pool: pool.pool, inside: inside.inside}, err
}

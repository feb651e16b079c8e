package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
)

// half is one family's part of the backend.
type half struct {
	family    dataplane.Family
	commands  *commands
	log       *slog.Logger
	marks     marks
	localhost bool     // NodePorts on 127.0.0.0/8 are allowed
	model     *model   // what the tables hold; nil: unknown
	localnet  localnet // before the Sync that goes on
	warned    bool     // that route_localnet cannot be set
	stale     []string // chains that are no longer needed and could not be removed
	unread    []string // tables whose rules cannot be read, since it was reported
	tally     tally
	written   atomic.Bool // the tables hold our rules, as far as is known
}

// refused are the ServicePorts that could not be programmed, and why.
type refused map[dataplane.PortID]error

// attempt plans some changes; undo takes the plan back.
type attempt func([]change) (tx *transaction, undo func())

// full makes the tables hold what want says, whatever they hold now. held is
// what a ServicePort that is refused falls back to, if anything.
func (h *half) full(ctx context.Context, want *dataplane.Snapshot, ports []*dataplane.ServicePort, held func(dataplane.PortID) *dataplane.ServicePort) (refused, error) {
	for try := 1; ; try++ {
		bad, err := h.fullOnce(ctx, want, ports, held)
		// Legacy has committed the tables before the one that it could not have, so
		// what there is must be read again.
		if try == fullTries || !withoutTable(err) || ctx.Err() != nil {
			return bad, err
		}
	}
}

// fullTries is how often a table that the kernel does not have yet is tried with all.
const fullTries = 3

func (h *half) fullOnce(ctx context.Context, want *dataplane.Snapshot, ports []*dataplane.ServicePort, held func(dataplane.PortID) *dataplane.ServicePort) (refused, error) {
	h.tally.partial = false
	have, err := h.read(ctx)
	h.model, h.stale = nil, nil
	if err != nil {
		return nil, err
	}
	h.tally.rules.begin()
	h.tally.rules.read(have)
	h.localnet = localnetOf(have[tableFilter].chains[chainInput])
	next, err := h.env(want)
	if err != nil {
		return nil, err
	}
	plan := func(changes []change) (*transaction, func()) {
		var tx *transaction
		h.model, tx = mend(have, next, changes)
		return tx, func() { h.model = nil }
	}
	changes := make([]change, 0, len(ports))
	for _, p := range ports {
		changes = append(changes, change{new: p})
	}
	again := func(c change) (change, bool) {
		old := dataplane.Fallback(held(c.id()), c.new)
		return change{new: old}, old != nil && old != c.new
	}
	empty := newModel(next)
	return h.program(ctx, empty, next, changes, plan, again)
}

// step makes the tables hold what want says, knowing what they hold.
func (h *half) step(ctx context.Context, want *dataplane.Snapshot, changes []change) (refused, error) {
	h.localnet = h.model.env.localnet
	h.tally.partial = true
	h.tally.rules.begin()
	next, err := h.env(want)
	if err != nil {
		return nil, err
	}
	next.dropInvalid = h.model.env.dropInvalid
	before := h.model.env
	plan := func(changes []change) (*transaction, func()) {
		d := newDelta()
		h.model.apply(changes, next, d)
		return newTransaction(d), func() {
			back := make([]change, 0, len(changes))
			for _, c := range changes {
				back = append(back, change{old: c.new, new: c.old})
			}
			h.model.apply(back, before, newDelta())
		}
	}
	again := func(c change) (change, bool) {
		old := dataplane.Fallback(c.old, c.new)
		return change{old: c.old, new: old}, old != c.old // else it stays as it is
	}
	return h.program(ctx, h.model, next, changes, plan, again)
}

// program carries out the changes, less those that are refused. m is the model
// that they are a change to; again gives what to do for a refused one in its
// place.
func (h *half) program(ctx context.Context, m *model, next env, changes []change, plan attempt, again func(change) (change, bool)) (refused, error) {
	bad := refused{}
	changes = leave(changes, m.vet(changes), bad, m, again)
	tx, undo := plan(changes)
	err := h.commit(ctx, tx, &next)
	var no *refusal
	if errors.As(err, &no) && !withoutTable(err) {
		undo()
		var why refused
		if why, err = h.try(ctx, changes, &next); err != nil {
			return nil, errors.Join(no, err)
		}
		changes = leave(changes, why, bad, m, again)
		tx, _ = plan(changes)
		if err = no; len(why) > 0 {
			err = h.commit(ctx, tx, &next)
		}
		if errors.As(err, &no) {
			err = h.commitKeepingStale(ctx, tx, &next, err)
		}
	}
	if err != nil {
		h.model = nil
		return nil, err
	}
	return bad, nil
}

// leave takes refused changes out, and those that cannot be without them.
func leave(changes []change, why, all refused, m *model, again func(change) (change, bool)) []change {
	for len(why) > 0 { // each round takes one out, and puts one in at most once for each
		changes = drop(changes, why, all, again)
		why = m.vet(changes)
	}
	return changes
}

// errGone marks a ServicePort whose earlier form is refused as well.
var errGone = errors.New("nor can it stay as it was")

// drop takes refused changes out, notes why, and puts in what is to be done in
// their place.
func drop(changes []change, why, all refused, again func(change) (change, bool)) []change {
	out := make([]change, 0, len(changes))
	for _, c := range changes {
		err, bad := why[c.id()]
		if !bad {
			out = append(out, c)
			continue
		}
		if first, second := all[c.id()]; second {
			all[c.id()] = fmt.Errorf("%w; %w: %w", first, errGone, err)
			continue
		}
		all[c.id()] = err
		if other, ok := again(c); ok {
			out = append(out, other)
		}
	}
	return out
}

// commit writes a transaction. The kernel routes packets of 127.0.0.0/8 only
// while the rule stands that keeps neighbours out.
func (h *half) commit(ctx context.Context, tx *transaction, next *env) error {
	if h.localnet == localnetSwitch && next.localnet == localnetOff {
		if err := setRouteLocalnet(false); err != nil {
			return err
		}
	}
	if !tx.empty() {
		if err := h.write(ctx, tx); err != nil {
			return err
		}
		chains, rules := tx.size()
		h.tally.written.Add(uint64(rules))
		h.tally.rules.wrote(tx)
		h.log.Debug("rules written", "chains", chains, "rules", rules)
	}
	if next.localnet != localnetOff {
		h.enterLocalnet()
	}
	return nil
}

// write carries out a transaction, under nft in stages if it is large. Legacy
// iptables replaces the whole table each time: one step is best there.
func (h *half) write(ctx context.Context, tx *transaction) error {
	stages := []*transaction{tx}
	if h.commands.variant == NFT {
		stages = tx.stages()
	}
	for _, stage := range stages {
		if err := h.commands.write(ctx, stage); err != nil {
			h.tally.failed()
			return err
		}
	}
	return nil
}

// commitKeepingStale tries once more without the removal of chains: a foreign
// rule that leads to one of them must not hold up all else.
func (h *half) commitKeepingStale(ctx context.Context, tx *transaction, next *env, cause error) error {
	stale := tx.keepStale()
	if len(stale) == 0 {
		return cause
	}
	if err := h.commit(ctx, tx, next); err != nil {
		return cause
	}
	h.stale = append(h.stale, stale...)
	h.log.Warn("chains that are no longer needed cannot be removed; another program's rule may lead to them", "error", cause)
	return nil
}

// env is what the rules depend on beside the ServicePorts.
func (h *half) env(want *dataplane.Snapshot) (env, error) {
	e := env{family: h.family, marks: h.marks, randomFully: h.commands.randomFully, dropInvalid: !liberal()}
	e.see(want, h.localhost)
	if err := e.check(want.Node.LocalPods); err != nil {
		return e, err
	}
	if h.family != dataplane.IPv4 || !slices.ContainsFunc(e.addresses, isLoopback) {
		return e, nil
	}
	e.localnet = h.localnet
	on, err := routesLocalnet()
	switch {
	case err != nil:
		h.warnLocalnet(err)
		e.localnet = localnetOff
	case !on:
		e.localnet = localnetSwitch
	case h.localnet == localnetOff:
		e.localnet = localnetFound
	}
	return e, nil
}

// liberal tells whether conntrack takes TCP packets outside of the window as
// valid. Then INVALID says too little to drop a packet for (KUBE-PROXY §1.14).
func liberal() bool {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

func (h *half) enterLocalnet() {
	on, err := routesLocalnet()
	if err == nil && !on {
		err = setRouteLocalnet(true)
	}
	if err != nil {
		h.warnLocalnet(err)
	}
}

func (h *half) warnLocalnet(err error) {
	if !h.warned {
		h.warned = true
		h.log.Warn("NodePorts will not answer on 127.0.0.1", "error", err)
	}
}

// probe has iptables-restore check a little of everything, without a commit.
func (h *half) probe(ctx context.Context) error {
	e := env{family: h.family, marks: h.marks, randomFully: h.commands.randomFully, dropInvalid: true}
	m := newModel(e)
	d := newDelta()
	m.start(nil, d)
	tx := newTransaction(d)
	if err := h.commands.test(ctx, tx.text()); err != nil {
		return fmt.Errorf("%w: iptables-%s for %s: %w", dataplane.ErrUnsupported, h.commands.variant, h.family, err)
	}
	return nil
}

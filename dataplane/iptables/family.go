package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// familyBackend is one family's part of the backend.
type familyBackend struct {
	family    dataplane.Family
	commands  *restore.Commands
	log       *slog.Logger
	bit       uint32 // of the packet mark: masquerade
	localhost bool   // the agent is told to serve NodePorts on 127.0.0.0/8
	limits    limits

	held         *held    // nil: unknown
	stale        []string // chains that are no longer needed and could not be removed
	unread       []string // tables whose rules cannot be read, since it was reported
	verdicts     verdicts
	counts       counts
	warnLocalnet sync.Once
	written      atomic.Bool           // the tables hold our rules, as far as is known
	noted        atomic.Pointer[noted] // for an Observe alongside the next Sync
}

// noted is what the last Sync left. No noted means that it is not known.
type noted struct {
	accepted *dataplane.Snapshot
	node     node
	stale    []string
}

// note notes what a Sync left.
func (f *familyBackend) note(accepted *dataplane.Snapshot) {
	if f.held == nil {
		f.noted.Store(nil)
		return
	}
	f.noted.Store(&noted{accepted: accepted, node: f.held.node, stale: slices.Clone(f.stale)})
}

// sync makes the tables hold what want describes. If they are known, they hold what was
// accepted. Else they are read back, and a ServicePort that is refused falls back to
// its form in accepted.
func (f *familyBackend) sync(ctx context.Context, known bool, want, accepted *dataplane.Snapshot) (refused, error) {
	const tries = 3
	for try := 1; ; try++ {
		a, err := f.begin(ctx, known && f.held != nil, want, accepted)
		f.held = nil
		if err == nil {
			err = a.run(ctx)
		}
		if err == nil {
			f.held = a.held
			return a.refused, nil
		}
		// Legacy has written the tables before one that it could not have, so that what
		// there is must be read.
		if try == tries || !restore.WithoutTable(err) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// attempt is one try to make the tables as wanted. What is refused is left out of it.
type attempt struct {
	*familyBackend
	read     tables         // as they were read back; nil: held says what they hold
	held     *held          // what the changes are made to
	before   node           // of held, at first
	next     node           // of held, in the end
	localnet localnet.State // what was done so far
	changes  []change
	refused  refused
	accepted dataplane.Ports // what refused ServicePorts fall back to, if the tables were read
}

// begin returns an attempt to change what is held, or, if that is not known, the
// tables as they are.
func (f *familyBackend) begin(ctx context.Context, known bool, want, accepted *dataplane.Snapshot) (*attempt, error) {
	f.counts.rules.begin()
	a := &attempt{familyBackend: f, held: f.held, accepted: accepted.Ports, refused: refused{}}
	var err error
	if !known {
		if a.read, err = f.readBack(ctx); err != nil {
			return nil, err
		}
		f.stale = nil
		f.counts.rules.read(a.read)
		a.localnet = localnetOf(a.read)
		a.changes = additions(want, f.family)
		if a.next, err = f.nodeFor(want, a.localnet); err != nil {
			return nil, err
		}
		a.held = newHeld(a.next)
		return a, nil
	}
	a.before, a.localnet = f.held.node, f.held.node.localnet
	if a.next, err = f.nodeFor(want, a.localnet); err != nil {
		return nil, err
	}
	a.next.dropInvalid = a.before.dropInvalid // which a full Sync alone looks at
	a.changes = f.held.changes(accepted.Ports, want.Ports, &a.next)
	return a, nil
}

// run carries the changes out, less those that are refused.
func (a *attempt) run(ctx context.Context) error {
	a.leaveOut(a.held.vet(a.changes))
	for { // each round but the last one takes a refused change out
		err := a.commit(ctx, a.plan())
		if !isRefusal(err) {
			return err
		}
		a.undo()
		why, failed := a.try(ctx, a.changes, &a.next)
		switch {
		case failed != nil:
			return errors.Join(err, failed)
		case len(why) == 0:
			return a.commitKeepingStale(ctx, a.plan(), err)
		}
		a.leaveOut(why)
	}
}

// plan makes the changes to what is held, and returns what to write for them.
func (a *attempt) plan() *restore.Writes {
	d := newDiff(a.read)
	if a.read != nil {
		a.held.start(a.changes, d)
	} else {
		a.held.apply(a.changes, a.next, d)
	}
	return d.rest()
}

// undo takes the plan back.
func (a *attempt) undo() {
	if a.read != nil {
		a.held = newHeld(a.next)
		return
	}
	back := make([]change, 0, len(a.changes))
	for _, c := range a.changes {
		back = append(back, change{old: c.new, new: c.old})
	}
	a.held.apply(back, a.before, newDiff(nil))
}

// fallback returns what is done in place of a refused change, if anything.
func (a *attempt) fallback(c change) (instead change, ok bool) {
	old := c.old
	if a.read != nil {
		old = a.accepted.Get(c.id())
	}
	instead = change{c.old, dataplane.Fallback(old, c.new)}
	return instead, instead.new != instead.old && instead.new != c.new
}

// nodeFor returns what the rules depend on apart from the ServicePorts; before is what
// was done so far to have NodePorts answer on localhost.
func (f *familyBackend) nodeFor(want *dataplane.Snapshot, before localnet.State) (node, error) {
	n := node{family: f.family, bit: f.bit, randomFully: f.commands.RandomFully, dropInvalid: !liberal()}
	err := n.see(want, f.localhost)
	if err != nil {
		return n, err
	}
	if n.localnet, err = localnet.Next(slices.ContainsFunc(n.addresses, isLoopback), before); err != nil {
		f.localnetFails(err)
		n.localnet = localnet.Off
	}
	return n, nil
}

// liberal reports whether conntrack takes TCP packets outside of the window as
// valid. Then INVALID says too little to drop a packet for (KUBE-PROXY §1.14).
func liberal() bool {
	on, err := sysctl.Proc.Int("net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && on != 0
}

// localnetFails logs once that NodePorts do not answer on localhost.
func (f *familyBackend) localnetFails(err error) {
	f.warnLocalnet.Do(func() { f.log.Warn("NodePorts will not answer on 127.0.0.1", "error", err) })
}

// probe has iptables-restore check a little of everything, without a commit.
func (f *familyBackend) probe(ctx context.Context) error {
	d := newDiff(nil)
	newHeld(node{family: f.family, bit: f.bit, randomFully: f.commands.RandomFully, dropInvalid: true}).start(nil, d)
	if err := f.commands.Test(ctx, d.rest().Text()); err != nil {
		return fmt.Errorf("%w: iptables-%s for %s: %w", dataplane.ErrUnsupported, f.commands.Variant, f.family, err)
	}
	return nil
}

// Package conntrack ends flows whose endpoint is gone.
//
// The kernel chooses an endpoint once per flow and then follows its connection
// tracking entry. A TCP client notices a dead endpoint and connects anew, which
// makes a new entry. A UDP client that keeps its source port renews the old
// entry with every packet and would talk to nobody for ever. So after each Sync
// the Cleaner deletes the UDP entries that lead from one of our frontends to
// anything but a serving endpoint (KUBE-PROXY §1.15); the client's next packet
// is a new flow. Entries of TCP and SCTP are never touched.
//
// Tune sets the sysctls of connection tracking (KUBE-PROXY §1.18).
package conntrack

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// A pass reads the kernel's whole table of a family, so the next one waits for
// costFactor times what the last one took: at most a tenth of one core goes
// into passes. The bounds keep a small table quick and a huge one from waiting
// too long.
const (
	costFactor = 9
	pauseLeast = 100 * time.Millisecond
	pauseMost  = 30 * time.Second
	retryAfter = time.Second // at least, after a pass that failed
)

// Pass tells of one clean-up of one family.
type Pass struct {
	Family  dataplane.Family
	Deleted int           // entries, also where Err is set
	Took    time.Duration // of reading the table and deleting
	Err     error         // nil: nothing stale is left; else the pass is repeated
}

// Cleaner deletes stale UDP entries of this network namespace, in its own time
// and never in the way of a Sync. Make it with New.
type Cleaner struct {
	// Report is told of every pass, from Run's goroutine. Set it before Run; nil:
	// nobody is told.
	Report func(Pass)

	log  *slog.Logger
	poke chan struct{} // one slot: want is new

	mu   sync.Mutex
	want *dataplane.Snapshot

	// Of Run's goroutine alone:
	known   *dataplane.Snapshot // what indexes hold; nil: nothing yet
	indexes []*index            // one per family
}

// New makes a Cleaner for the families that the node forwards.
func New(log *slog.Logger, families ...dataplane.Family) *Cleaner {
	c := &Cleaner{log: log, poke: make(chan struct{}, 1)}
	for _, f := range families {
		c.indexes = append(c.indexes, newIndex(f))
	}
	return c
}

// Synced says that the kernel now forwards want. It never blocks; of several
// calls during a pass the last one counts. After the first call all entries are
// checked, later only when something went that flows may still lead to.
func (c *Cleaner) Synced(want *dataplane.Snapshot) {
	c.mu.Lock()
	c.want = want
	c.mu.Unlock()
	c.wake()
}

func (c *Cleaner) wake() {
	select {
	case c.poke <- struct{}{}:
	default: // Run has not taken the last one yet and will see this one too
	}
}

// Run cleans up until ctx ends.
func (c *Cleaner) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.poke:
		}
		pause := c.step(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// step cleans up what the newest Snapshot asks for. It gives the pause that is
// due before the next step, and after a failure asks for that step itself.
func (c *Cleaner) step(ctx context.Context) time.Duration {
	c.mu.Lock()
	want := c.want
	c.mu.Unlock()
	c.learn(want)

	pause := time.Duration(0)
	for _, x := range c.indexes {
		if !x.due {
			continue
		}
		pass := x.clean(ctx)
		if ctx.Err() != nil {
			return 0
		}
		c.tell(pass)
		pause += min(max(costFactor*pass.Took, pauseLeast), pauseMost)
		if pass.Err != nil {
			pause = max(pause, retryAfter)
			c.wake()
		}
	}
	return pause
}

// learn brings the indexes from the Snapshot that they hold to want, at the
// cost of what differs.
func (c *Cleaner) learn(want *dataplane.Snapshot) {
	var before dataplane.Ports
	if c.known != nil {
		before = c.known.Ports
	}
	for _, x := range c.indexes {
		for old, cur := range dataplane.Diff(before, want.Ports) {
			x.update(old, cur)
		}
		if c.known == nil || c.known.Node != want.Node {
			x.setNode(want.Node)
		}
	}
	c.known = want
}

func (c *Cleaner) tell(p Pass) {
	attrs := []any{"family", p.Family.String(), "deleted", p.Deleted, "took", p.Took}
	switch {
	case p.Err != nil:
		c.log.Warn("cannot end all UDP flows whose endpoint is gone; trying again", append(attrs, "error", p.Err)...)
	case p.Deleted > 0:
		c.log.Info("ended UDP flows whose endpoint is gone", attrs...)
	default:
		c.log.Debug("found no UDP flow whose endpoint is gone", attrs...)
	}
	if c.Report != nil {
		c.Report(p)
	}
}

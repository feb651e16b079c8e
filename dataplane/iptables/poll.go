package iptables

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

const (
	// pollPause is between two looks at the tables of legacy iptables.
	pollPause = 2 * time.Second
	// pollMost is how long one look may take.
	pollMost = 10 * time.Second
)

// poller looks at the tables of legacy iptables every now and then. Their size
// is one system call. If it changed, the rules that lead to our chains are looked
// for, because most changes are of others' rules.
type poller struct {
	watch    *watch
	families []*familyBackend

	mu    sync.Mutex        // held while we write or look
	sizes map[string]uint32 // by family and table, as last seen
}

func newPoller(w *watch, families []*familyBackend) *poller {
	return &poller{watch: w, families: families, sizes: map[string]uint32{}}
}

// pause keeps the poller from looking until resume, which notes what we wrote.
func (p *poller) pause() (resume func()) {
	p.mu.Lock()
	return func() {
		defer p.mu.Unlock()
		for _, f := range p.families {
			for _, table := range []string{restore.NAT, restore.Filter} {
				if size, err := xtables.LegacySize(f.family, table); err == nil {
					p.sizes[sizeKey(f, table)] = size
				}
			}
		}
	}
}

func sizeKey(f *familyBackend, table string) string { return f.family.String() + table }

func (p *poller) run() {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		select {
		case <-p.watch.stop:
			return
		case <-tick.C:
		}
		for _, f := range p.families {
			p.look(f)
		}
	}
}

// look compares the tables of a family with what was last seen.
func (p *poller) look(f *familyBackend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, table := range []string{restore.NAT, restore.Filter} {
		size, err := xtables.LegacySize(f.family, table)
		key := sizeKey(f, table)
		if err != nil || size == p.sizes[key] {
			continue
		}
		leads, err := leadsToOurs(f.commands, table)
		if err != nil { // another program holds the lock, say: look again
			p.watch.log.Debug("cannot look for the rules that lead to our chains", "table", table, "error", err)
			continue
		}
		p.sizes[key] = size
		if !leads && f.written.Load() {
			p.watch.disturb()
		}
	}
}

// leadsToOurs reports whether each rule of a table that leads from a built-in
// chain to one of ours is there.
func leadsToOurs(c *restore.Commands, table string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pollMost)
	defer cancel()
	for _, j := range jumpsOf(table) {
		rules, err := c.List(ctx, table, j.From)
		if err != nil || !strings.Contains(rules, "-j "+j.To) {
			return false, err
		}
	}
	return true, nil
}

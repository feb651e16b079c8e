package iptables

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
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
	watch  *watch
	halves []*half

	mu    sync.Mutex        // held while we write or look
	sizes map[string]uint32 // by family and table, as last seen
}

func newPoller(w *watch, halves []*half) *poller {
	return &poller{watch: w, halves: halves, sizes: map[string]uint32{}}
}

// pause keeps the poller from looking until resume, which notes what we wrote.
func (p *poller) pause() (resume func()) {
	p.mu.Lock()
	return func() {
		defer p.mu.Unlock()
		for _, h := range p.halves {
			for _, table := range []string{tableNAT, tableFilter} {
				if info, err := xtables.LegacyInfo(h.family, table); err == nil {
					p.sizes[sizeKey(h, table)] = info.Size()
				}
			}
		}
	}
}

func sizeKey(h *half, table string) string { return h.family.String() + table }

func (p *poller) run() {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		select {
		case <-p.watch.stop:
			return
		case <-tick.C:
		}
		for _, h := range p.halves {
			p.look(h)
		}
	}
}

// look compares the tables of a family with what was last seen.
func (p *poller) look(h *half) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, table := range []string{tableNAT, tableFilter} {
		info, err := xtables.LegacyInfo(h.family, table)
		key := sizeKey(h, table)
		if err != nil || info.Size() == p.sizes[key] {
			continue
		}
		leads, err := h.commands.leadsToOurs(table)
		if err != nil { // another program holds the lock, say: look again
			p.watch.log.Debug("cannot look for the rules that lead to our chains", "table", table, "error", err)
			continue
		}
		p.sizes[key] = info.Size()
		if !leads && h.written.Load() {
			p.watch.disturb()
		}
	}
}

// leadsToOurs reports whether each rule of a table that leads from a built-in
// chain to one of ours is there.
func (c *commands) leadsToOurs(table string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pollMost)
	defer cancel()
	for _, j := range jumps() {
		if j.table != table {
			continue
		}
		out, err := exec.CommandContext(ctx, c.path, "-w", "1", "-t", table, "-S", j.from).CombinedOutput()
		if err != nil {
			return false, fmt.Errorf("listing chain %s of table %s: %w: %s", j.from, table, err, firstLines(out))
		}
		if !strings.Contains(string(out), "-j "+j.to) {
			return false, nil
		}
	}
	return true, nil
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// backend is the IPVS of one network namespace.
type backend struct {
	dataplane.Resting
	options Options
	cfg     dataplane.Config
	log     *slog.Logger
	halves  []*half // in order of cfg.Families
	counts  counts
	reader  *kernel // for Observe alongside
	watch   *watch

	stop    context.CancelFunc
	drainer sync.WaitGroup

	mu     sync.Mutex // Sync or the drainer: they share a socket
	kernel *kernel
	drains map[draining]time.Time
	// accepted is what the kernel held after the last Sync that succeeded; nil: there was none.
	accepted   *dataplane.Snapshot
	schedulers map[string]triedScheduler // those that were asked for
	// searchScheduler asks the kernel for one.
	searchScheduler func(name string) error
}

// Traits say that the kernel is read alongside.
func (b *backend) Traits() dataplane.Traits { return dataplane.Traits{ObservesAlongside: true} }

// Families implements dataplane.Familied.
func (b *backend) Families() []dataplane.Family { return b.cfg.Families }

// Sync makes the kernel forward exactly what want describes.
func (b *backend) Sync(ctx context.Context, prev, want *dataplane.Snapshot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.watch.pause()()
	before, fault := prev, error(nil)
	if before == nil {
		before = b.outside(b.accepted) // what is refused now and was not then stays as it was
	}
	accepted, failed := dataplane.Refuse(before, want, func(p *dataplane.ServicePort) error {
		why, err := b.refusal(p)
		if fault == nil {
			fault = err
		}
		return why
	})
	if fault != nil {
		return fault
	}
	err := b.program(ctx, prev, accepted)
	held := dataplane.Held(b.accepted, accepted, err)
	if held == nil {
		return err
	}
	b.accepted = held
	return errors.Join(err, dataplane.NewPartialError(failed))
}

// outside is what was accepted, less what has a place in ExcludeCIDRs: another program
// may have taken that since.
func (b *backend) outside(accepted *dataplane.Snapshot) *dataplane.Snapshot {
	if accepted == nil || len(b.options.ExcludeCIDRs) == 0 {
		return accepted
	}
	var within []dataplane.PortID
	for p := range accepted.Ports.All() {
		if slices.ContainsFunc(p.Frontends, func(f dataplane.Frontend) bool { return f.Kind != dataplane.NodePort && b.excluded(f.Addr.Addr()) }) {
			within = append(within, p.ID)
		}
	}
	out := *accepted
	out.Ports = accepted.Ports.With(nil, within)
	return &out
}

// program writes each family. What both need of the kernel is read once.
func (b *backend) program(ctx context.Context, prev, want *dataplane.Snapshot) error {
	common := sync.OnceValues(func() (*common, error) {
		if err := b.applySettings(); err != nil {
			return nil, err
		}
		return b.kernel.readCommon()
	})
	var failed []dataplane.FamilyFailure
	well := 0
	for _, h := range b.halves {
		if b.Rests(h.family) {
			continue
		}
		if err := h.sync(ctx, prev, want, common); err != nil {
			failed = append(failed, dataplane.FamilyFailure{Family: h.family, Err: err})
		} else {
			well++
		}
	}
	return dataplane.NewFamilyError(failed, well)
}

// refusal is why a ServicePort cannot be programmed, nil if it can.
func (b *backend) refusal(port *dataplane.ServicePort) (why, fault error) {
	if !slices.Contains(b.cfg.Families, port.ID.Family) {
		return fmt.Errorf("the agent programs no %s here", port.ID.Family), nil
	}
	if port.Scheduler != "" {
		if err := b.tryScheduler(port.Scheduler); err != nil {
			return err, nil
		}
	}
	for _, f := range port.Frontends {
		if f.Kind == dataplane.NodePort || !b.excluded(f.Addr.Addr()) {
			continue
		}
		key := serviceKey{port.ID.Protocol, f.Addr}
		have, err := b.kernel.ipvs.GetService(virtual(key, ""))
		b.counts.messages++
		switch {
		case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", key, err)
		case have.Timeout != ownTimeout:
			return fmt.Errorf("another program has %s, and --ipvs-exclude-cidrs leaves that alone", key), nil
		}
	}
	return nil, nil
}

func (b *backend) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(b.options.ExcludeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// schedulerAgain is after how long a scheduler is asked for again that the kernel
// did not have: somebody may load its module meanwhile.
const schedulerAgain = 10 * time.Second

// triedScheduler is what became of the search for a scheduler.
type triedScheduler struct {
	err error
	at  time.Time
}

// tryScheduler finds out whether the kernel has a scheduler.
func (b *backend) tryScheduler(name string) error {
	tried, known := b.schedulers[name]
	if !known || tried.err != nil && time.Since(tried.at) >= schedulerAgain {
		tried.err = b.searchScheduler(name)
		tried.at = time.Now()
		b.schedulers[name] = tried
	}
	return tried.err
}

// findScheduler makes a service with a scheduler in a network namespace of its own.
func (b *backend) findScheduler(name string) error {
	return netns.InScratch(func() error { return tryServices(b.cfg.Families[0], name) })
}

// Close ends the drainer; a later process goes on with it.
func (b *backend) Close() error {
	b.stop()
	b.drainer.Wait()
	errs := []error{b.watch.close()}
	b.kernel.close()
	b.reader.close()
	for _, h := range b.halves {
		errs = append(errs, h.table.Close(), h.reader.Close())
	}
	return errors.Join(errs...)
}

// tables are those of the halves.
func (b *backend) tables() []*nft.Table {
	var out []*nft.Table
	for _, h := range b.halves {
		out = append(out, h.table)
	}
	return out
}

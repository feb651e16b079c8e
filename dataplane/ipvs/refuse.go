package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
)

// outside returns what was accepted, less what has a place in ExcludeCIDRs: another program
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

// refusal returns why a ServicePort cannot be programmed, nil if it can.
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

package ipvs

import (
	"context"
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

// refusedService is an IPVS service that the kernel did not make, or change, as a
// ServicePort wants it.
type refusedService struct {
	port dataplane.PortID
	key  serviceKey
	why  error
}

// ofService reports whether an error says that the kernel does not take one IPVS
// service or endpoint as it is: an endpoint whose address is not unicast, a scheduler
// that is gone. An error that is none of the kernel's answers, or that each service
// would get, is the machine's.
func ofService(err error) bool {
	var no unix.Errno
	return errors.As(err, &no) && !slices.Contains([]unix.Errno{
		unix.EPERM, unix.EACCES, unix.EROFS,
		unix.ENOSYS, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOPROTOOPT,
		unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE,
		unix.EBADF, unix.ENOTSOCK, unix.ENOTCONN, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, unix.EIO, unix.EINTR, unix.EAGAIN, unix.ETIMEDOUT,
	}, no)
}

// fallBack puts ServicePorts of which the kernel refused an IPVS service back to what
// they were before, as far as dataplane.Fallback allows, and takes those out of which it
// refuses that too. It returns what the kernel holds in want's place.
func (f *familyBackend) fallBack(ctx context.Context, to target, next *node, before, want *dataplane.Snapshot, refused []refusedService) (*dataplane.Snapshot, []dataplane.PortError, error) {
	var failed []dataplane.PortError
	told, known := want, map[dataplane.PortID]bool{}
	for len(refused) > 0 {
		for _, r := range refused {
			if !known[r.port] {
				known[r.port] = true
				failed = append(failed, dataplane.PortError{ID: r.port, Err: r.why})
			}
		}
		instead := retreat(before, want, told, refused)
		d := newDiff(f.table, next, f.ids.Of, f.refs)
		var err error
		if d.found, err = f.backend.kernel.readBack(refused); err != nil {
			return nil, nil, err
		}
		d.change(next, f.ids, told.Ports, instead.Ports)
		if refused, err = f.write(ctx, to, d, f.localnet); err != nil {
			return nil, nil, err
		}
		told = instead
	}
	return told, failed, nil
}

// retreat returns what to tell the kernel where it refused services of what it was told
// in want's place: a ServicePort as it was before, and nothing of one that it refuses so
// as well. Where one had the very form before that is refused now, nothing is sure.
func retreat(before, want, told *dataplane.Snapshot, refused []refusedService) *dataplane.Snapshot {
	var keep []*dataplane.ServicePort
	var drop []dataplane.PortID
	seen := map[dataplane.PortID]bool{}
	for _, r := range refused {
		if seen[r.port] {
			continue
		}
		seen[r.port] = true
		cur, old := want.Ports.Get(r.port), (*dataplane.ServicePort)(nil)
		if before != nil && told.Ports.Get(r.port) == cur {
			old = dataplane.Fallback(before.Ports.Get(r.port), cur)
		}
		if old == nil || old == cur {
			drop = append(drop, r.port)
		} else {
			keep = append(keep, old)
		}
	}
	out := *told
	out.Ports = told.Ports.With(keep, drop)
	return &out
}

// readBack reads services that the kernel refused to change; nil: one is not there.
func (k *kernel) readBack(refused []refusedService) (map[serviceKey]*heldService, error) {
	out := make(map[serviceKey]*heldService, len(refused))
	for _, r := range refused {
		s, err := k.ipvs.GetService(virtual(r.key, ""))
		k.counts.messages++
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
			out[r.key] = nil
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", r.key, err)
		}
		destinations, err := k.destinations(r.key)
		if err != nil {
			return nil, err
		}
		out[r.key] = &heldService{scheduler: s.SchedName, flags: s.Flags & schedulerFlags, ours: s.Timeout == ownTimeout, destinations: destinations}
	}
	return out, nil
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

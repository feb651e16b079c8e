package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Backend makes one kernel mechanism forward what a Snapshot describes. It
// keeps these clauses, and package conformance tests each of them:
//
//  1. Sync(nil, w) leads to the same forwarding whatever was there before,
//     leftovers of a crash included.
//  2. Sync(a, b) equals Sync(nil, b).
//  3. Sync(w, w) writes nothing.
//  4. Foreign objects (another program's rules, IPVS services, tc filters, BPF
//     programs) stay as they were.
//  5. A connection to an endpoint that stays in the pool survives any Sync, a
//     restart and an upgrade of the agent.
//  6. A frontend is never empty or half-written in between: add before delete,
//     and switch each Service in one atomic step.
//  7. Close keeps forwarding, Driver.Cleanup clears it; both may run after a crash.
//  8. What a kernel cannot do is an error that names the Service and the
//     reason, never silence.
//
// Its methods are called by one goroutine at a time, but for Observe if its Traits
// say so. Two calls of Observe are never made alongside each other.
type Backend interface {
	// Sync makes the kernel forward exactly what want describes. prev is what
	// the kernel holds: the last want that this Backend accepted, less what it
	// refused. nil means that the kernel's state is unknown: read it back,
	// repair, prune.
	//
	// A *PartialError says that the ServicePorts which it names are still as
	// they were in prev, less the frontends that they do not want any more (see
	// Fallback), or absent, and that all else is as in want. A *FamilyError
	// says that the kernel's state is unknown for the families which it names: the
	// Backend remembers that and reads them back in its next Sync. All else is as in
	// want. The two may be joined. Any other error leaves the kernel's state unknown.
	// It keeps forwarding whatever it forwarded before.
	Sync(ctx context.Context, prev, want *Snapshot) error
	// Observe reads the kernel back, for status and verification.
	Observe(ctx context.Context) (*Observation, error)
	// Close frees what the process holds and leaves forwarding in place.
	Close() error
}

// Driver opens one kind of Backend. Package catalog lists them.
type Driver struct {
	Name string // as given to --backend
	// Open readies a Backend and leaves what forwards now alone until its first Sync.
	// If the mechanism does not work here, Open leaves nothing behind and returns an
	// error that wraps ErrUnsupported and says what is missing. Any other error is a
	// fault that says nothing of the machine.
	Open func(context.Context, Config) (Backend, error)
	// Probe returns the error that Open would return, and changes nothing. Nil means
	// that Open and Close change nothing either. Call Works.
	Probe func(context.Context, Config) error
	// Layers are the names of what this Driver may put into the kernel, each of
	// which a Driver of that name can clean up by itself. Empty: just its own.
	Layers []string
	// TranslatesSockets says that a client's socket may be translated as it connects: then
	// no packet of the connection shows the Service's address.
	TranslatesSockets bool
	// OwnsConnections says that the mechanism has a table of connections itself, in
	// addition to the kernel's conntrack.
	OwnsConnections bool
	// OnTop says that this is no backend by itself but a layer that may be on top of any.
	OnTop bool
	// OpensFirewall says that the Backend itself lets its connections through what
	// iptables' rules on the host drop. For others package hostfirewall does.
	OpensFirewall bool
	// Needs are what the mechanism needs of the machine.
	Needs []Need

	// What follows is of one layer; a backend of several has Cleanup alone.

	// Find returns, in plain words, what of Switchyard's Cleanup would remove;
	// empty: nothing. It changes nothing.
	Find func(context.Context) ([]string, error)
	// Cleanup removes all that Switchyard put into the kernel with this
	// mechanism, and nothing else. It needs no Backend and succeeds where there
	// is nothing to remove.
	Cleanup func(context.Context, Config) error
	// Drain is set by mechanisms that translate connections themselves. It stops them
	// from accepting new connections and returns once the existing ones have ended: at
	// once if there are none, with ctx's error if ctx ends first. Call Cleanup
	// afterwards. Nil means that the kernel's NAT carries existing connections.
	Drain func(context.Context, Config) error
	// Serves is set where Drain is. It reports whether the kernel still has anything of
	// this mechanism that accepts connections or translates them, whoever runs.
	Serves func() (bool, error)
}

// Works returns nil if Open would work here, or the error that it would return. It
// changes nothing.
func (d Driver) Works(ctx context.Context, cfg Config) error {
	if d.Probe != nil {
		return d.Probe(ctx, cfg)
	}
	b, err := d.Open(ctx, cfg)
	if err != nil {
		return err
	}
	return b.Close()
}

// ErrUnsupported marks what this kernel or system cannot do, as against a
// fault. Wrap it with what is missing.
var ErrUnsupported = errors.New("not supported here")

// Config is what every backend is told. What only one backend has is given to
// the function that makes its Driver.
type Config struct {
	Log *slog.Logger // never nil
	// Families to program; at least one. Ports of another family are an error.
	Families []Family
	// SomeFamilies lets a Driver program just those of the Families that work here, if
	// one does.
	SomeFamilies bool
	// MasqueradeBit is the bit of the packet mark that means "masquerade", 0 to
	// 31; kube-proxy's default is 14.
	MasqueradeBit int
	// LocalhostNodePorts lets IPv4 NodePorts answer on 127.0.0.0/8, where
	// Node.NodePorts has it too (KUBE-PROXY §1.10).
	LocalhostNodePorts bool
	// Draining reports whether another backend on this node is still ending its
	// connections. Once that is over, there is a Sync(nil, want). Nil means never.
	Draining func() bool
}

// PartialError is Sync's word that some ServicePorts could not be programmed
// and that everything else was.
type PartialError struct {
	Failed []PortError // sorted by ID, at least one
}

// NewPartialError makes the error of a Sync that did all but these ServicePorts; nil:
// there are none.
func NewPartialError(failed []PortError) error {
	if len(failed) == 0 {
		return nil
	}
	slices.SortFunc(failed, func(a, b PortError) int { return a.ID.Compare(b.ID) })
	return &PartialError{Failed: failed}
}

// FamilyError is returned by Sync if address families could not be programmed
// and all others were. If none could, Sync returns another error.
type FamilyError struct {
	Failed []FamilyFailure // sorted by family, at least one
}

// FamilyFailure is why one address family could not be programmed.
type FamilyFailure struct {
	Family Family
	Err    error
}

func (f FamilyFailure) Error() string { return fmt.Sprintf("programming %s: %v", f.Family, f.Err) }
func (f FamilyFailure) Unwrap() error { return f.Err }

func (e *FamilyError) Error() string {
	words := make([]string, len(e.Failed))
	for i, f := range e.Failed {
		words[i] = f.Error()
	}
	return strings.Join(words, "; ")
}

// Unwrap gives each family's error.
func (e *FamilyError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		errs[i] = f
	}
	return errs
}

func (e *FamilyError) families() []Family {
	var out []Family
	for _, f := range e.Failed {
		out = append(out, f.Family)
	}
	return out
}

// Has reports whether a family is among those that failed. A nil e has none.
func (e *FamilyError) Has(f Family) bool {
	return e != nil && slices.ContainsFunc(e.Failed, func(failed FamilyFailure) bool { return failed.Family == f })
}

// IsPartial reports whether a Sync that returned err did all but what the error
// names: ServicePorts, families, or both, which are nil if there are none.
func IsPartial(err error) (partial *PartialError, failed *FamilyError, ok bool) {
	inPart, inFamilies := errors.As(err, &partial), errors.As(err, &failed)
	return partial, failed, inPart || inFamilies
}

// PortError is why one ServicePort could not be programmed.
type PortError struct {
	ID  PortID
	Err error
}

func (e PortError) Error() string { return fmt.Sprintf("Service port %s: %v", e.ID, e.Err) }
func (e PortError) Unwrap() error { return e.Err }

func (e *PartialError) Error() string {
	const most = 3
	var b strings.Builder
	fmt.Fprintf(&b, "%d Service ports could not be programmed", len(e.Failed))
	for i, f := range e.Failed {
		if i == most {
			fmt.Fprintf(&b, "; and %d more", len(e.Failed)-most)
			break
		}
		b.WriteString("; " + f.Error())
	}
	return b.String()
}

// Unwrap gives each port's error.
func (e *PartialError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		errs[i] = f
	}
	return errs
}

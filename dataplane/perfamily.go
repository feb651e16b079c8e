package dataplane

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"
)

// NewFamilyError makes the error of a Sync that failed for some address families
// and did all for a number of others: a *FamilyError, or another error if there
// were no others; nil: none failed.
func NewFamilyError(failed []FamilyFailure, well int) error {
	byFamily := func(a, b FamilyFailure) int { return cmp.Compare(a.Family, b.Family) }
	e := &FamilyError{Failed: slices.SortedFunc(slices.Values(failed), byFamily)}
	switch {
	case len(failed) == 0:
		return nil
	case well == 0:
		return errors.Join(e.Unwrap()...)
	}
	return e
}

// Held returns what a kernel holds after a Sync of accepted that returned err: a
// family that failed is taken to be as in before, which may be nil. It returns nil if
// err is not about families alone: then nobody knows.
func Held(before, accepted *Snapshot, err error) *Snapshot {
	if err == nil {
		return accepted
	}
	var failed *FamilyError
	if !errors.As(err, &failed) {
		return nil
	}
	out := *accepted
	out.Ports = Replace(accepted.Ports, portsOf(before), func(id PortID) bool { return failed.Has(id.Family) })
	return &out
}

// portsOf returns a Snapshot's ServicePorts, none if it is nil.
func portsOf(s *Snapshot) Ports {
	if s == nil {
		return Ports{}
	}
	return s.Ports
}

// Resting are the families that a Backend leaves alone for now. A FamilyHolder
// embeds it.
type Resting struct{ families atomic.Pointer[[]Family] }

// Hold implements FamilyHolder.
func (r *Resting) Hold(families []Family) { r.families.Store(&families) }

// Rests reports whether a family is left alone.
func (r *Resting) Rests(f Family) bool {
	families := r.families.Load()
	return families != nil && slices.Contains(*families, f)
}

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
	e := &FamilyError{Failed: slices.SortedFunc(slices.Values(failed), func(a, b FamilyFailure) int { return cmp.Compare(a.Family, b.Family) })}
	switch {
	case len(failed) == 0:
		return nil
	case well == 0:
		return errors.Join(e.Unwrap()...)
	}
	return e
}

// LessFamilies returns what a kernel holds after a Sync of a Snapshot that failed for
// some families: those are taken to be as in before, which may be nil.
func (s *Snapshot) LessFamilies(failed *FamilyError, before *Snapshot) *Snapshot {
	if failed == nil {
		return s
	}
	var ports Ports
	if before != nil {
		ports = before.Ports
	}
	out := *s
	out.Ports = Replace(s.Ports, ports, func(id PortID) bool { return failed.Has(id.Family) })
	return &out
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

package dataplane

import (
	"log/slog"
	"maps"
	"slices"
	"time"
)

// Pauses before a family that failed is tried again. While it is tried the others
// wait, so a try that takes long is followed by faultDuty times as long a pause.
const (
	faultFirst = time.Second
	faultMost  = 30 * time.Second
	faultDuty  = 20
)

// faults are the address families that could not be programmed while others were.
type faults map[Family]fault

type fault struct {
	why   error
	since time.Time
	tries int
	again time.Time // the next try is not before
}

// held returns the families whose pause is not over.
func (f faults) held(now time.Time) []Family {
	var held []Family
	for family, fault := range f {
		if now.Before(fault.again) {
			held = append(held, family)
		}
	}
	slices.Sort(held)
	return held
}

// note takes up that a Sync, which left the families held alone, failed for
// others (nil: for none) and took a time.
func (f faults) note(log *slog.Logger, held []Family, failed *FamilyError, now time.Time, took time.Duration) {
	for family, old := range f {
		if !slices.Contains(held, family) && !failed.Has(family) {
			delete(f, family)
			log.Info("an address family is programmed again", "family", family, "after", now.Sub(old.since).Round(time.Second))
		}
	}
	if failed == nil {
		return
	}
	for _, failure := range failed.Failed {
		next, again := f[failure.Family]
		if !again {
			next.since = now
		}
		if !again || next.why.Error() != failure.Err.Error() {
			log.Error("an address family cannot be programmed; the others are", "family", failure.Family, "error", failure.Err)
		}
		next.why = failure.Err
		next.tries++
		next.again = now.Add(max(growing(faultFirst, faultMost, next.tries), faultDuty*took))
		f[failure.Family] = next
	}
}

// due is when the next family is to be tried; zero: none is.
func (f faults) due() time.Time {
	var due time.Time
	for _, fault := range f {
		if due.IsZero() || fault.again.Before(due) {
			due = fault.again
		}
	}
	return due
}

// families returns those that failed, sorted.
func (f faults) families() []Family { return slices.Sorted(maps.Keys(f)) }

// list returns what is wrong with each family, sorted.
func (f faults) list() []FamilyStatus {
	var out []FamilyStatus
	for _, family := range f.families() {
		out = append(out, FamilyStatus{Family: family, Since: f[family].since, Err: f[family].why})
	}
	return out
}

// Package backendtest holds what the tests of several backends do alike.
package backendtest

import (
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// MustSync fails the test if a Sync fails.
func MustSync(t testing.TB, b dataplane.Backend, prev, want *dataplane.Snapshot) {
	t.Helper()
	if err := b.Sync(t.Context(), prev, want); err != nil {
		t.Fatal(err)
	}
}

// MustHold reports an error if the kernel does not hold what is wanted, or the Backend
// cannot read all of it.
func MustHold(t testing.TB, b dataplane.Backend, want *dataplane.Snapshot) {
	t.Helper()
	have, err := b.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diffs := have.Differences(dataplane.Expect(want)); !have.Whole || len(diffs) > 0 {
		t.Errorf("the kernel is not as wanted (read whole: %t): %v", have.Whole, diffs)
	}
}

// ObserveAlongside reads the kernel while Syncs change it from one Snapshot to the
// other and back (for -race). What is read after the last Sync must be as wanted.
func ObserveAlongside(t *testing.T, b dataplane.Backend, prev, want *dataplane.Snapshot) {
	t.Helper()
	MustSync(t, b, nil, prev)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 {
			if _, err := b.Observe(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		MustSync(t, b, prev, want)
		select {
		case <-done:
			MustHold(t, b, want)
			return
		default:
			prev, want = want, prev
		}
	}
}

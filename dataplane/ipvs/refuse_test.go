package ipvs

import (
	"errors"
	"testing"
	"time"
)

// TestSchedulerAgain: a scheduler that the kernel does not have is asked for again
// after a while, and one that it has never.
func TestSchedulerAgain(t *testing.T) {
	asked, missing := 0, errors.New("no module")
	b := &backend{schedulers: map[string]triedScheduler{}, searchScheduler: func(string) error { asked++; return missing }}
	later := func(d time.Duration) {
		if tried, ok := b.schedulers["mh"]; ok {
			b.schedulers["mh"] = triedScheduler{tried.err, tried.at.Add(-d)}
		}
	}
	for _, step := range []struct {
		what   string
		after  time.Duration
		loaded bool
		want   error
		asked  int
	}{
		{"the first time", 0, false, missing, 1},
		{"at once again", 0, true, missing, 1},
		{"after a while", schedulerAgain, true, nil, 2},
		{"long after", time.Hour, false, nil, 2},
	} {
		later(step.after)
		if step.loaded {
			missing = nil
		}
		if err := b.tryScheduler("mh"); (err == nil) != (step.want == nil) || asked != step.asked {
			t.Errorf("%s: %v after %d searches, want %v after %d", step.what, err, asked, step.want, step.asked)
		}
	}
}

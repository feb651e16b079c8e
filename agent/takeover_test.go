package agent

import (
	"context"
	"log/slog"
	"testing"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// TestOthersServe: a backend is told that another one drains only while one does that
// is to be taken over from.
func TestOthersServe(t *testing.T) {
	serves := true
	layers := func(catalog.Options) []dataplane.Driver {
		return []dataplane.Driver{
			{Name: "plain"},
			{Name: "own", Serves: func() (bool, error) { return serves, nil }, Cleanup: func(context.Context, dataplane.Config) error { serves = false; return nil }},
		}
	}
	for _, c := range []struct {
		name     string
		takeOver bool
		runs     string
		want     bool
	}{
		{"it is taken over from", true, "plain", true},
		{"it is the one that runs", true, "own", false},
		{"nobody is taken over from", false, "plain", false},
	} {
		a := &Agent{log: slog.New(slog.DiscardHandler), config: config.Default(), backends: Backends{Layers: layers}, choice: catalog.Choice{Layers: []string{c.runs}}}
		a.config.Switchyard.TakeOver = c.takeOver
		if got := a.othersServe(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), config: config.Default(), backends: Backends{Layers: layers}}
	a.config.Switchyard.TakeOver = true
	if err := layers(catalog.Options{})[1].Cleanup(t.Context(), dataplane.Config{}); err != nil || a.othersServe() {
		t.Errorf("after its cleanup it still serves, %v", err)
	}
}

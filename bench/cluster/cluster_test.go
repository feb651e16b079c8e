package cluster

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

func TestMain(m *testing.M) {
	netlab.Main(Roles())
	os.Exit(m.Run())
}

// TestAgents has a real API server tell a few agents of changes. It is skipped where
// Kubernetes' programs are not built, which takes longer than all tests.
func TestAgents(t *testing.T) {
	kerneltest.NeedRoot(t)
	programs, err := filepath.Abs("../../.cache/e2e/bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(programs, apiServer)); err != nil {
		t.Skipf("%v; `make bench-cluster` builds it", err)
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip(err)
	}
	const agents, rate = 5, 10
	r := &run{
		Options: Options{
			Kinds: []string{Switchyard}, Agents: []int{agents}, Services: 20, Changes: []float64{rate}, For: 2 * time.Second,
			Kubernetes: programs, Log: slog.New(slog.DiscardHandler), Progress: t.Logf,
		},
		dir: t.TempDir(), report: &Report{},
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.create(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := r.startAll(t.Context(), Switchyard, agents)
	if err != nil {
		t.Fatal(err)
	}
	defer f.stop()
	if err := r.window(t.Context(), Switchyard, agents, rate, f); err != nil {
		t.Fatal(err)
	}
	const slice = 300 // bytes that an EndpointSlice of 10 endpoints has at least
	if s := r.report.Storms[0]; s.Sent < agents*20*slice || s.Synced == 0 || s.Peak == 0 {
		t.Errorf("the start of %d agents that are told of 20 Services: %+v", agents, s)
	}
	w := r.report.Windows[0]
	// On a busy machine the last change may still be on its way.
	if w.Lag == nil || w.Lag.Missing > agents || w.Lag.P50 <= 0 {
		t.Errorf("lag %+v; want each change but the last to have reached each agent", w.Lag)
	}
	if w.Sent < agents*w.Changes*slice || w.Changes == 0 {
		t.Errorf("%d agents were sent %.0f B/s at %.1f changes a second", agents, w.Sent, w.Changes)
	}
}

func TestSynced(t *testing.T) {
	now := time.Now()
	behind, ahead := &agent{}, &agent{}
	a := &agents{all: []*agent{behind, ahead}, times: load.NewHistogram()}
	for _, c := range []struct {
		name    string
		of      *agent
		changes []time.Time
		since   time.Time
		want    int
	}{
		{"one has its first Snapshot", behind, nil, time.Time{}, 1},
		{"both have", ahead, nil, time.Time{}, 2},
		{"one has a change", ahead, []time.Time{now.Add(-time.Second), now}, now, 1},
		{"the other has one before it", behind, []time.Time{now.Add(-time.Second)}, now, 1},
		{"both have it", behind, []time.Time{now}, now, 2},
	} {
		c.of.pending = c.changes
		a.synced(c.of)
		var got int
		if err := a.Synced(c.since, &got); err != nil || got != c.want {
			t.Errorf("%s: %d agents, error %v; want %d", c.name, got, err, c.want)
		}
	}
	var times hdrhistogram.Snapshot
	if err := a.Take(struct{}{}, &times); err != nil {
		t.Fatal(err)
	}
	if got := hdrhistogram.Import(&times).TotalCount(); got != 4 {
		t.Errorf("%d times from a change to its Sync; want 4", got)
	}
	if got := a.times.TotalCount(); got != 0 {
		t.Errorf("%d times are left after they were taken", got)
	}
}

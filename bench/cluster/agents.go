package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

// roleName is the role of the process that has many agents in it.
const roleName = "agents"

// Roles are what the program's main function gives to netlab.Main.
func Roles() map[string]netlab.Role {
	return map[string]netlab.Role{roleName: func() map[string]any { return map[string]any{"Agents": &agents{times: load.NewHistogram()}} }}
}

// agents is the RPC service of that process: agents without a kernel, each with
// what the real one has up to the Backend, and with a connection of its own.
type agents struct {
	mu     sync.Mutex
	all    []*agent
	times  *hdrhistogram.Histogram // from a change to the end of the Sync that has it
	failed error                   // the first Source that could not go on
}

// agent is one of them. The lock is that of agents.
type agent struct {
	watcher *watcher.Watcher
	syncer  *dataplane.Syncer
	synced  bool        // once
	pending []time.Time // changes in the Snapshot that is being synced
	newest  time.Time   // change that was synced
}

// StartArgs are how many agents to start, and where the API server is.
type StartArgs struct {
	Kubeconfig string
	Agents     int
	Compress   bool // watches
}

// Start starts agents. They end with the process.
func (a *agents) Start(args StartArgs, _ *struct{}) error {
	at, err := serverOf(args.Kubeconfig)
	if err != nil {
		return err
	}
	for i := range args.Agents {
		if err := a.start(nodeName(i), at, args); err != nil {
			return err
		}
	}
	return nil
}

// serverOf returns host and port of a kubeconfig's API server.
func serverOf(kubeconfig string) (string, error) {
	c, err := kube.Config(kube.Options{Kubeconfig: kubeconfig})
	if err != nil {
		return "", err
	}
	at, err := url.Parse(c.Host)
	if err != nil {
		return "", fmt.Errorf("reading kubeconfig %q: %w", kubeconfig, err)
	}
	return at.Host, nil
}

func (a *agents) start(node, at string, args StartArgs) error {
	log := slog.New(slog.DiscardHandler)
	// To name the server makes a dialer for each Source. Without one, client-go
	// would have all agents share a connection.
	source, err := kube.New(kube.Options{
		Kubeconfig: args.Kubeconfig, Servers: []string{at}, NodeName: node, Log: log, CompressWatches: args.Compress,
	})
	if err != nil {
		return err
	}
	g := &agent{}
	g.watcher, err = watcher.New(watcher.Options{
		Log: log, NodeName: node, Families: []dataplane.Family{dataplane.IPv4}, ExternalIPs: true,
		Addresses: func(ctx context.Context, report func([]netip.Prefix)) error {
			report(nil)
			<-ctx.Done()
			return nil
		},
		Programming: func(_ uint64, triggers []time.Time) { g.pending = append(g.pending, triggers...) },
	}, func() { g.syncer.Notify() })
	if err != nil {
		return err
	}
	g.syncer = dataplane.NewSyncer(noKernel{}, dataplane.SyncerConfig{
		Log: log, AuditInterval: -1, Next: g.watcher.Next, Report: func(dataplane.SyncReport) { a.synced(g) },
	})
	a.mu.Lock()
	a.all = append(a.all, g)
	a.mu.Unlock()
	go g.syncer.Run(context.Background())
	go func() {
		err := g.watcher.Run(context.Background(), source)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.failed = errors.Join(a.failed, fmt.Errorf("agent of %s: %w", node, err))
	}()
	return nil
}

// synced notes that an agent's Sync ended. The Syncer's goroutine calls it, and has
// called Programming for that Sync before.
func (a *agents) synced(g *agent) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	g.synced = true
	for _, t := range g.pending {
		_ = a.times.RecordValue(min(int64(now.Sub(t)), int64(time.Minute))) // within its bounds
		if t.After(g.newest) {
			g.newest = t
		}
	}
	g.pending = g.pending[:0]
}

// Synced returns how many agents have synced a change of this time or a later one.
// The zero time counts any Sync.
func (a *agents) Synced(since time.Time, n *int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*n = 0
	for _, g := range a.all {
		if g.synced && !g.newest.Before(since) {
			*n++
		}
	}
	return a.failed
}

// Take returns the times from a change to each agent's Sync of it since it was called
// last.
func (a *agents) Take(_ struct{}, times *hdrhistogram.Snapshot) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*times = *a.times.Export()
	a.times = load.NewHistogram()
	return nil
}

// noKernel is a Backend that programs nothing.
type noKernel struct{}

// Sync implements dataplane.Backend.
func (noKernel) Sync(context.Context, *dataplane.Snapshot, *dataplane.Snapshot) error { return nil }

// Observe implements dataplane.Backend.
func (noKernel) Observe(context.Context) (*dataplane.Observation, error) {
	return nil, errors.New("there is no kernel to read")
}

// Close implements dataplane.Backend.
func (noKernel) Close() error { return nil }

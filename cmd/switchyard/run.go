package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
	"github.com/switchyard-io/switchyard/dataplane/healthcheck"
	"github.com/switchyard-io/switchyard/status"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/kube"
	"github.com/switchyard-io/switchyard/watcher/manifests"
)

func runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent on this node",
		Long: `Run the agent on this node.

It watches Services and EndpointSlices and makes this node's kernel forward
them. When it ends, forwarding stays as it is.`,
		Example: `  switchyard run --kubeconfig /etc/kubernetes/kubelet.conf --cluster-cidr 10.244.0.0/16
  switchyard run --manifests ./manifests --backend iptables`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context())
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// run is the agent's life. All is checked before anything in the kernel changes.
func (f *runFlags) run(ctx context.Context) error {
	if err := f.check(); err != nil {
		return err
	}
	log, err := f.log.logger()
	if err != nil {
		return err
	}
	a := &agent{log: log, flags: f, families: dataplane.HostFamilies(), started: time.Now()}
	opts, err := f.watcherOptions(log, a.families)
	if err != nil {
		return err
	}
	opts.Programming = a.programming
	if a.watcher, err = watcher.New(opts, a.publish); err != nil {
		return err
	}
	if a.source, err = f.source(log, opts.NodeName); err != nil {
		return err
	}
	backend, err := a.open(ctx)
	if err != nil {
		return err
	}
	a.opened = backend
	conntrack.Tune(log, f.conntrack)
	a.wire(backend)
	log.Info("started", "version", version, "node", opts.NodeName, "backend", a.backend, "families", fmt.Sprintf("%v", a.families))
	err = a.serve(ctx)
	if closeErr := backend.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("closing backend %s: %w", a.backend, closeErr)
	}
	log.Info("stopped; forwarding stays in place")
	return err
}

// source is where Services come from.
func (f *runFlags) source(log *slog.Logger, node string) (watcher.Source, error) {
	if f.manifests != "" {
		return manifests.New(f.manifests, node, log), nil
	}
	return kube.New(kube.Options{Kubeconfig: f.kubeconfig, Master: f.master, NodeName: node, Log: log})
}

// agent is the parts of a running agent.
type agent struct {
	log      *slog.Logger
	flags    *runFlags
	families []dataplane.Family
	backend  string
	choice   catalog.Choice
	opened   dataplane.Backend
	started  time.Time

	watcher     *watcher.Watcher
	source      watcher.Source
	syncer      *dataplane.Syncer
	conntrack   *conntrack.Cleaner
	healthcheck *healthcheck.Server
	metrics     *status.Metrics
	health      *status.Health
	programmed  bool // the kernel held all that was wanted, once
}

// open chooses the backend and readies it.
func (a *agent) open(ctx context.Context) (dataplane.Backend, error) {
	cfg := dataplane.Config{
		Log:                a.log,
		Families:           a.families,
		MasqueradeBit:      a.flags.backend.masqueradeBit,
		LocalhostNodePorts: a.flags.localhostNodePorts,
	}
	driver, err := catalog.Choose(ctx, a.flags.backend.name, a.flags.backend.drivers(), cfg)
	if err != nil {
		return nil, err
	}
	a.backend, a.choice = driver.Name, driver
	backend, err := driver.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening backend %s: %w", a.backend, err)
	}
	return backend, nil
}

// wire makes the parts that follow the Syncer.
func (a *agent) wire(backend dataplane.Backend) {
	a.metrics = status.NewMetrics(version, a.backend, a.families)
	a.metrics.CountChanges(
		func() uint64 { return a.watcher.Status().Stats.ServiceChanges },
		func() uint64 { return a.watcher.Status().Stats.SliceChanges })
	a.syncer = dataplane.NewSyncer(backend, dataplane.SyncerConfig{
		Log: a.log, MinInterval: a.flags.minInterval, AuditInterval: a.flags.audit, Report: a.synced,
	})
	a.health = &status.Health{
		Families:     a.families,
		Sync:         a.syncer.Status,
		NodeEligible: func() bool { return a.watcher.Status().NodeEligible },
		Waiting:      a.waiting,
		Now:          time.Now,
	}
	a.conntrack = conntrack.New(a.log, a.families...)
	a.conntrack.Report = func(p conntrack.Pass) { a.metrics.ConntrackCleaned(p.Family, p.Deleted, p.Took) }
	a.healthcheck = healthcheck.New(a.log, a.health.Healthy)
}

// waiting is what the first Snapshot waits for, or what is wrong with the manifests.
func (a *agent) waiting() string {
	if dir, ok := a.source.(*manifests.Source); ok && dir.Err() != nil {
		return "the manifests as they are now are not in force: " + dir.Err().Error()
	}
	if what := a.watcher.Status().Waiting; what != "" {
		return "waiting for " + what
	}
	return ""
}

// publish takes each new Snapshot from the watcher.
func (a *agent) publish(s *dataplane.Snapshot) {
	a.metrics.Queued()
	a.syncer.Submit(s)
}

func (a *agent) programming(revision uint64, triggers []time.Time) {
	a.metrics.Programming(revision, triggers)
}

// synced tells those who follow the kernel.
func (a *agent) synced(r dataplane.SyncReport) {
	a.metrics.Synced(a.backend, r)
	if r.Err == nil && !a.programmed {
		a.programmed = true
		a.log.Info("the kernel forwards all Services; ready", "ports", r.Want.Ports.Len(), "took", r.Took)
	}
	if r.InForce != nil {
		a.conntrack.Synced(r.InForce)
		a.healthcheck.Synced(r.InForce)
	}
}

// serve runs all parts until ctx ends or one of them cannot go on.
func (a *agent) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.watcher.Run(ctx, a.source) })
	g.Go(func() error { a.syncer.Run(ctx); return nil })
	g.Go(func() error { a.conntrack.Run(ctx); return nil })
	g.Go(func() error { a.healthcheck.Run(ctx); return nil })
	a.serveInspector(ctx, g)
	for _, s := range []*status.Server{
		{Name: "health", Addr: a.flags.healthz, Handler: status.HealthMux(a.health, a.metrics)},
		{Name: "metrics", Addr: a.flags.metrics, Handler: status.MetricsMux(a.metrics, a.backend)},
	} {
		if s.Addr == "" {
			continue
		}
		s.HardFail, s.Log = a.flags.hardFail, a.log
		g.Go(func() error { return s.Run(ctx) })
	}
	return g.Wait()
}

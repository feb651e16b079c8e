// Package agent is the agent that runs on a node: it wires the parts together,
// chooses the backend, takes over from what served the node before, and cleans
// up when that is asked for.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/agent/events"
	"github.com/switchyard-io/switchyard/agent/status"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
	"github.com/switchyard-io/switchyard/dataplane/healthcheck"
	"github.com/switchyard-io/switchyard/dataplane/hostfirewall"
	"github.com/switchyard-io/switchyard/dataplane/lock"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/kube"
	"github.com/switchyard-io/switchyard/watcher/manifests"
)

// NewOptions returns the flags of a command that takes a configuration.
func NewOptions() *config.Options {
	return &config.Options{Backends: catalog.Names(catalog.Drivers(config.Default().Backends()))}
}

// Load reads the configuration, and finds all that is wrong with it.
func Load(o *config.Options) (*config.Config, error) {
	c, err := o.Complete()
	if err != nil {
		return nil, err
	}
	return c, c.Validate(o.Backends)
}

// Agent is the parts of a running agent. Make it with New.
type Agent struct {
	options   *config.Options
	version   string
	config    *config.Config                // at the start
	inForce   atomic.Pointer[config.Config] // what of it can change is taken up
	log       *slog.Logger
	verbosity slog.LevelVar
	asked     []dataplane.Family // address families to program
	families  []dataplane.Family // those that are, less than asked where the machine lacks something
	backend   string
	backends  Backends
	choice    catalog.Choice
	opened    dataplane.Backend
	started   time.Time
	unfit     map[string]error            // layers whose first Sync failed here, and why
	lockOnce  func(context.Context) error // takes the lock, unless this process has it
	faults    chan *unfitError            // one slot: the backend cannot program this machine

	watcher     *watcher.Watcher
	source      watcher.Source
	events      *events.Recorder
	syncer      *dataplane.Syncer
	conntrack   *conntrack.Cleaner
	healthcheck *healthcheck.Server
	firewall    *hostfirewall.Keeper // nil: the backend opens it itself
	metrics     *status.Metrics

	healthServer, metricsServer *status.Server
	health                      *status.Health
	programmed                  bool          // the kernel held all that was wanted but for what is refused, once
	served                      bool          // a Sync succeeded, if not for all families
	forwarding                  chan struct{} // closed when it did
	leftovers                   leftovers
	draining                    atomic.Bool // another backend on this node is still ending its connections
}

// Parts is what an agent is made of.
type Parts struct {
	Flags    *config.Options
	Config   *config.Config
	Version  string
	Backends Backends
	Families []dataplane.Family // nil: those of the host
	Log      *slog.Logger       // nil: to standard error, as Config says
}

// New makes an agent.
func New(p Parts) *Agent {
	a := &Agent{
		options: p.Flags, config: p.Config, version: p.Version, backends: p.Backends, asked: p.Families, log: p.Log,
		leftovers: leftovers{again: make(chan struct{}, 1)},
	}
	if a.asked == nil {
		a.asked = dataplane.HostFamilies()
	}
	if a.log == nil {
		a.log = p.Config.Logger(os.Stderr, &a.verbosity)
	}
	return a
}

// Run does what the flags ask for. It checks all of them before anything in the
// kernel changes.
func Run(ctx context.Context, o *config.Options, version string) error {
	c, err := Load(o)
	if err != nil {
		return err
	}
	if o.WriteTo != "" {
		return c.Write(o.WriteTo)
	}
	a := New(Parts{Flags: o, Config: c, Version: version, Backends: Backends{catalog.Drivers, catalog.Layers}})
	for _, w := range c.Warnings {
		a.log.Warn("a part of the configuration does not count", "reason", w)
	}
	for _, d := range c.Deprecated() {
		a.log.Warn("a setting of an older version", "setting", d)
	}
	for _, u := range c.Unheeded() {
		a.log.Info("a setting has no meaning here", "setting", u)
	}
	if o.Cleanup {
		return Cleanup{Out: os.Stdout, Log: a.log, Config: c, Backend: catalog.Auto, KubeProxy: true}.Run(ctx)
	}
	return a.Run(ctx)
}

// once runs all parts with the first backend that is not known to be unfit.
func (a *Agent) once(ctx context.Context) error {
	a.families = a.asked
	node, err := a.newWatcher()
	if err != nil {
		return err
	}
	if err = a.newSource(node); err != nil {
		return err
	}
	if err := a.listen(ctx); err != nil {
		return err
	}
	if err := a.lockOnce(ctx); err != nil {
		return err
	}
	backend, err := a.open(ctx)
	if err != nil {
		return err
	}
	a.opened = backend
	if have := dataplane.FamiliesOf(backend, a.families); !slices.Equal(have, a.families) {
		a.families = have
		if _, err := a.newWatcher(); err != nil {
			return errors.Join(err, backend.Close())
		}
	}
	tuned := conntrack.Tune(a.log, a.config.Conntrack())
	a.config.ProtectFromOOM(a.log)
	if a.options.InitOnly {
		a.log.Info("what needs full root privileges is done; ending, as --init-only asks for")
		return backend.Close()
	}
	a.inForce.Store(a.config)
	a.wire(backend)
	a.log.Info("started", "version", a.version, "node", node, "backend", a.backend, "families", fmt.Sprintf("%v", a.families))
	err = a.serve(ctx, tuned)
	if closeErr := backend.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("closing backend %s: %w", a.backend, closeErr)
	}
	if err == nil || !startsAgain(err) {
		a.log.Info("stopped; forwarding stays in place")
	}
	return err
}

// newWatcher makes the watcher for the families that are programmed, and returns
// the name of the node.
func (a *Agent) newWatcher() (node string, err error) {
	opts, err := a.config.Watcher(a.log, a.families)
	if err != nil {
		return "", err
	}
	opts.Programming, opts.Conflict = a.programming, a.conflict
	a.watcher, err = watcher.New(opts, a.changed)
	return opts.NodeName, err
}

// newSource makes where Services come from, and where Events go.
func (a *Agent) newSource(node string) error {
	if dir := a.config.Switchyard.Manifests; dir != "" {
		a.source, a.events = manifests.New(dir, node, a.log), events.New(a.log, node, nil)
		return nil
	}
	opts := a.config.API(a.log, node)
	opts.Malformed = a.malformed
	source, err := kube.New(opts)
	if err != nil {
		return err
	}
	a.source, a.events = source, events.New(a.log, node, source.SendEvent)
	return nil
}

// conflict and malformed say what is wrong with a Service. All nodes know it, so
// that few of them say it.
func (a *Agent) conflict(l watcher.Loss) {
	s := events.Service{Namespace: l.Service().Namespace, Name: l.Service().Name, UID: l.UID()}
	if a.watcher.Speaks(s.UID) {
		a.events.Wrong(s, events.Conflict, l.String())
	}
}

func (a *Agent) malformed(s facts.Name, uid string, err error) {
	if a.watcher.Speaks(uid) {
		a.events.Wrong(events.Service{Namespace: s.Namespace, Name: s.Name, UID: uid}, events.Malformed, err.Error())
	}
}

// unchecked says that a Service's health check cannot be answered.
func (a *Agent) unchecked(f healthcheck.Failure) {
	s := events.Service{Namespace: f.Namespace, Name: f.Service, UID: a.watcher.ServiceUID(f.Namespace, f.Service)}
	a.events.Wrong(s, events.HealthCheck, fmt.Sprintf("node %s cannot answer the health check at %s: %v", a.events.Node, f.Addr, f.Err))
}

// leave is how long the agent waits for the one that it replaces to end.
const leave = 30 * time.Second

// lock makes this agent the only process that programs the network namespace.
// With --init-only it programs nothing, and the agent that it is to make way for
// may run.
func (a *Agent) lock(ctx context.Context) (release func(), err error) {
	if a.options.InitOnly {
		return func() {}, nil
	}
	l, err := lock.Take(ctx, lock.Options{Dir: a.config.LockDir, As: "run", Wait: leave, Log: a.log})
	if held := (*lock.HeldError)(nil); errors.As(err, &held) {
		return nil, fmt.Errorf("cannot start, because %w and has not ended within %v: stop it first", err, leave)
	}
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// open chooses the backend and readies it.
func (a *Agent) open(ctx context.Context) (dataplane.Backend, error) {
	cfg, options := a.config.Dataplane(a.log, a.families), a.backendOptions()
	cfg.Draining = a.draining.Load
	choice, err := catalog.Choose(ctx, a.config.Backend(), a.backends.Drivers(options), cfg)
	if err != nil {
		return nil, err
	}
	a.backend, a.choice = choice.Name, choice
	a.draining.Store(a.othersServe())
	a.keepFirewallOpen(cfg)
	return choice.Backend, nil
}

// keepFirewallOpen readies the Keeper of the host's firewall, if the backend needs one.
func (a *Agent) keepFirewallOpen(cfg dataplane.Config) {
	a.firewall = nil
	k := hostfirewall.Config{Log: a.log, Families: a.families, MasqueradeBit: cfg.MasqueradeBit}
	for _, d := range a.backends.Layers(a.config.Backends()) {
		if !slices.Contains(a.choice.Layers, d.Name) {
			continue
		}
		if d.OpensFirewall {
			return
		}
	}
	a.firewall = hostfirewall.NewKeeper(k)
	a.choice.Layers = slices.Insert(a.choice.Layers, 0, hostfirewall.LayerName) // the packet backend stays the last
}

// wire makes the parts that follow the Syncer.
func (a *Agent) wire(backend dataplane.Backend) {
	a.metrics = status.NewMetrics(a.version, a.backend, a.families)
	a.metrics.CountAPIRequests()
	var gates []status.Gate
	for name, stage := range config.HeededGates() {
		gates = append(gates, status.Gate{Name: name, Stage: stage, On: a.config.Gate(name)})
	}
	a.metrics.ShowGates(gates)
	a.metrics.CountBackend(a.log, backend)
	a.countContacts()
	a.countStart()
	a.metrics.CountLeftovers(a.leftovers.get)
	if a.firewall != nil {
		a.metrics.ShowFirewall(a.firewall.State)
	}
	a.metrics.ShowPassedOver(a.choice.NamesPassedOver())
	a.metrics.ShowMissing(a.missing(), a.started)
	a.metrics.CountChanges(func() (services, slices uint64) {
		s := a.watcher.Stats()
		return s.ServiceChanges, s.SliceChanges
	})
	a.syncer = dataplane.NewSyncer(backend, dataplane.SyncerConfig{
		Log: a.log, MinInterval: a.config.MinInterval(), AuditInterval: a.config.Switchyard.VerifyInterval.Duration, Report: a.synced,
		Next: a.watcher.Next,
	})
	a.metrics.CountDrift(a.syncer.Drift)
	a.health = &status.Health{
		Families:     a.families,
		BehindLimit:  a.config.BehindLimit(),
		Sync:         a.syncer.Status,
		NodeEligible: a.watcher.NodeEligible,
		Waiting:      a.waiting,
		Now:          time.Now,
	}
	a.conntrack = conntrack.New(a.log, a.families...)
	a.conntrack.Report = func(p conntrack.Pass) { a.metrics.ConntrackCleaned(p.Family, p.Deleted, p.Took) }
	a.healthcheck = healthcheck.New(a.log, a.health.Healthy)
	a.healthcheck.OnFailure = a.unchecked
}

// waiting is what the first Snapshot waits for, or what is wrong with the manifests.
func (a *Agent) waiting() string {
	if dir, ok := a.source.(*manifests.Source); ok && dir.Err() != nil {
		return "the manifests as they are now are not in force: " + dir.Err().Error()
	}
	if what := a.watcher.Waiting(); what != "" {
		return "waiting for " + what
	}
	return ""
}

// changed says that the watcher has a new Snapshot to take.
func (a *Agent) changed() { a.syncer.Notify() }

// programming says that the Syncer takes a new Snapshot.
func (a *Agent) programming(revision uint64, triggers []time.Time) {
	a.metrics.Queued()
	a.metrics.Programming(revision, triggers)
}

// synced tells those who follow the kernel.
func (a *Agent) synced(r dataplane.SyncReport) {
	a.metrics.Synced(a.backend, r)
	a.events.Synced(r, a.watcher.ServiceUID)
	a.judge(r)
	if r.InForce != nil && len(r.Failing) == 0 && !a.programmed {
		a.programmed = true
		close(a.forwarding)
		a.log.Info("the kernel forwards all Services; ready", "ports", r.Want.Ports.Len(), "took", r.Took)
	}
	if r.InForce != nil {
		a.conntrack.Synced(r.InForce)
		a.healthcheck.Synced(r.InForce)
		if a.firewall != nil {
			a.firewall.Synced(r.InForce)
		}
	}
}

// retune takes up what a running agent can of a changed configuration.
func (a *Agent) retune(c *config.Config) {
	a.inForce.Store(c)
	c.SetVerbosity(&a.verbosity)
	conntrack.Tune(a.log, c.Conntrack())
	c.ProtectFromOOM(a.log)
}

// giveMemoryBack returns to the kernel what it took to read and program all
// Services, and does not take to keep them. The runtime would do so over minutes.
func (a *Agent) giveMemoryBack(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-a.forwarding:
		debug.FreeOSMemory()
	}
}

// serve runs all parts until ctx ends or one of them cannot go on. tuned says that
// the settings of conntrack are in force.
func (a *Agent) serve(ctx context.Context, tuned bool) error {
	a.healthServer.Handler = status.HealthMux(a.health, a.metrics)
	a.metricsServer.Handler = status.MetricsMux(a.pages())
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range []*status.Server{a.healthServer, a.metricsServer} {
		g.Go(func() error { return s.Run(ctx) })
	}
	g.Go(func() error { a.events.Run(ctx); return nil })
	a.events.Starting()
	g.Go(func() error { return a.watcher.Run(ctx, a.source) })
	g.Go(func() error { a.syncer.Run(ctx); return nil })
	g.Go(func() error { a.conntrack.Run(ctx); return nil })
	g.Go(func() error { a.healthcheck.Run(ctx); return nil })
	g.Go(func() error { a.giveMemoryBack(ctx); return nil })
	if !tuned {
		g.Go(func() error {
			conntrack.TuneLater(ctx, a.log, func() conntrack.Settings { return a.inForce.Load().Conntrack() })
			return nil
		})
	}
	if a.firewall != nil {
		g.Go(func() error { a.firewall.Run(ctx); return nil })
	}
	a.serveInspector(ctx, g)
	g.Go(func() error { a.takeOver(ctx); return nil })
	g.Go(func() error { a.watchLeftovers(ctx); return nil })
	g.Go(func() error { return a.fallThrough(ctx) })
	g.Go(func() error { return a.awaitFamilies(ctx) })
	follower := &config.Follower{Log: a.log, Load: func() (*config.Config, error) { return Load(a.options) }, Apply: a.retune}
	g.Go(func() error { return follower.Run(ctx, a.config) })
	return g.Wait()
}

// pages is what the metrics server shows.
func (a *Agent) pages() status.Pages {
	p := status.Pages{
		Metrics: a.metrics, Health: a.health, Backend: a.backend, Version: a.version, Started: a.started,
		Config:       func() map[string]any { return a.inForce.Load().Documents() },
		Statusz:      a.config.Gate(config.GateStatusz),
		Profiling:    a.config.KubeProxy.EnableProfiling,
		SetVerbosity: func(level int) { a.verbosity.Set(config.LogLevel(level)) },
	}
	if a.config.Gate(config.GateFlagz) {
		p.Flags = a.options.Flags()
	}
	return p
}

// listen readies the servers. Where an address must be had, they have it.
func (a *Agent) listen(ctx context.Context) error {
	k := &a.config.KubeProxy
	a.healthServer = &status.Server{Name: "health", Addr: k.HealthzBindAddress, HardFail: k.BindAddressHardFail, Log: a.log}
	a.metricsServer = &status.Server{Name: "metrics", Addr: k.MetricsBindAddress, HardFail: k.BindAddressHardFail, Log: a.log}
	if !k.BindAddressHardFail || a.options.InitOnly {
		return nil
	}
	for _, s := range []*status.Server{a.healthServer, a.metricsServer} {
		if err := s.Listen(ctx); err != nil {
			a.events.CannotServe(ctx, s.Name, err)
			return err
		}
	}
	return nil
}

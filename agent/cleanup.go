package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/lock"
	"github.com/switchyard-io/switchyard/dataplane/takeover"
)

// Cleanup removes what Switchyard left in the kernel, and prints what it was.
type Cleanup struct {
	Out       io.Writer
	Log       *slog.Logger
	Config    *config.Config
	Backend   string        // one, or all of them (auto)
	KubeProxy bool          // what kube-proxy left, too
	DryRun    bool          // remove nothing; an agent may run
	Force     bool          // although an agent runs
	Drain     time.Duration // at most, for connections that the kernel's NAT does not carry
}

// Run cleans up. While an agent runs, it removes nothing and fails, unless Force
// or DryRun is set.
func (r Cleanup) Run(ctx context.Context) error {
	if !r.DryRun && !r.Force {
		held, err := lockForCleanup(ctx, r.Config)
		if err != nil {
			return err
		}
		defer held.Release()
	}
	if r.Drain > 0 && !r.DryRun {
		if err := drainConnections(ctx, r.Log, r.Config, r.Backend, r.Drain); err != nil {
			return err
		}
	}
	return r.remove(ctx)
}

// lockForCleanup keeps agents from starting during a cleanup, and fails while
// one runs.
func lockForCleanup(ctx context.Context, c *config.Config) (*lock.Lock, error) {
	l, err := lock.Take(ctx, lock.Options{Dir: c.LockDir, As: "cleanup"})
	if held := (*lock.HeldError)(nil); errors.As(err, &held) {
		return nil, fmt.Errorf("nothing is removed, because %w: stop it first", err)
	}
	return l, err
}

// layersOf returns what a backend may put into the kernel, or all backends
// (auto), in the order of removal. What may be on top of any backend comes first: it
// must not go on by itself.
func layersOf(c *config.Config, backend string) []dataplane.Driver {
	layers := catalog.Layers(c.Backends())
	if backend == catalog.Auto {
		return layers
	}
	names := []string{backend}
	for _, d := range catalog.Drivers(c.Backends()) {
		if d.Name == backend {
			names = append(names, d.Layers...)
		}
	}
	return slices.DeleteFunc(layers, func(d dataplane.Driver) bool { return !d.OnTop && !slices.Contains(names, d.Name) })
}

// drainConnections has backends that translate connections by themselves serve
// nothing new, and waits until what they have is over.
func drainConnections(ctx context.Context, log *slog.Logger, c *config.Config, backend string, most time.Duration) error {
	cfg := c.Dataplane(log, dataplane.HostFamilies())
	if err := takeover.Hold(cfg.Families); err != nil {
		log.Warn("connections that drain may break, as the kernel's NAT cannot be kept", "error", err)
	}
	for _, d := range layersOf(c, backend) {
		drain := takeover.Drain(d, cfg, most)
		if drain == nil {
			continue
		}
		err := drain(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("backend %s is still there, for its connections, and serves nothing new: run cleanup again", d.Name)
		}
		if err != nil {
			log.Warn("connections are not waited for", "backend", d.Name, "error", err)
		}
	}
	return takeover.Release(cfg.Families)
}

// remove removes what is there, and prints what it was.
func (r Cleanup) remove(ctx context.Context) error {
	cfg := dataplane.Config{Log: r.Log, Families: dataplane.HostFamilies()}
	var errs []error
	some := false
	step := func(whose string, find func(context.Context) ([]string, error), remove func() error) {
		found, err := find(ctx)
		if err != nil {
			r.Log.Debug("cannot look for what is left in the kernel", "of", whose, "error", err)
		}
		if !r.DryRun {
			if err := remove(); err != nil {
				errs = append(errs, fmt.Errorf("removing what %s left: %w", whose, err))
				return
			}
		}
		some = some || len(found) > 0
		for _, what := range found {
			_, _ = fmt.Fprintf(r.Out, "%s %s: %s\n", map[bool]string{true: "would remove", false: "removed"}[r.DryRun], whose, what)
		}
	}
	for _, d := range layersOf(r.Config, r.Backend) {
		step(d.Name, d.Find, func() error { return d.Cleanup(ctx, cfg) })
	}
	if r.Backend == catalog.Auto && !r.DryRun {
		errs = append(errs, takeover.Release(cfg.Families))
	}
	if r.KubeProxy {
		step("kube-proxy", kubeProxy().Find, func() error { return kubeProxy().Remove(ctx, r.Log) })
	}
	err := errors.Join(errs...)
	if err == nil && !some {
		_, _ = fmt.Fprintln(r.Out, "There is nothing to remove.")
	}
	return err
}

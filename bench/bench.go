// Package bench measures Switchyard's backends and kube-proxy side by side, in one run.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/bench/scale"
	"github.com/switchyard-io/switchyard/bench/traffic"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Options are what a run is asked for.
type Options struct {
	Quick      bool
	Agent      string   // path of switchyard
	Kubernetes string   // directory of kube-apiserver and kube-proxy
	Proxies    []string // names; none: all that work here
	Parts      []string // none: all
	Version    string
	Log        *slog.Logger
	Progress   func(format string, args ...any)
}

// run is one in progress.
type run struct {
	Options
	dir    string
	kinds  []proxy.Kind
	report *result.Report
	closes []func() error // of the part in progress
}

// Run measures.
func Run(ctx context.Context, o Options) (report *result.Report, err error) {
	r := &run{Options: o}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp("", "switchyard-bench-"); err != nil {
		return nil, fmt.Errorf("making a directory for logs: %w", err)
	}
	r.report = &result.Report{
		Version: o.Version, Started: time.Now(), Quick: o.Quick, Without: r.report.Without,
		Machine: result.ThisMachine(map[string][]string{
			"switchyard": {o.Agent, "version"}, "kube-proxy": {filepath.Join(o.Kubernetes, proxy.KubeProxy), "--version"},
			"kube-apiserver": {filepath.Join(o.Kubernetes, "kube-apiserver"), "--version"}, "etcd": {"etcd", "--version"},
			"iptables": {"iptables", "--version"}, "nft": {"nft", "--version"},
		}),
	}
	for _, k := range r.columns() {
		r.report.Proxies = append(r.report.Proxies, k.Name)
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{
		{result.Traffic, r.traffic},
		{result.FirstPacket, r.first},
		{result.ControlPlane, r.work},
	} {
		if len(o.Parts) > 0 && !slices.Contains(o.Parts, part.name) {
			continue
		}
		err := errors.Join(part.do(ctx), r.close())
		if ctx.Err() != nil {
			return nil, errors.Join(errors.New("interrupted; all that it made is removed"), os.RemoveAll(r.dir))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w (logs are in %s)", part.name, err, r.dir)
		}
	}
	r.report.Took = time.Since(r.report.Started)
	return r.report, os.RemoveAll(r.dir)
}

// check finds what would fail later with a worse message.
func (r *run) check() (err error) {
	if err := netlab.RequireRoot(); err != nil {
		return fmt.Errorf("%w; the benchmark changes nothing outside of them", err)
	}
	for _, p := range r.Parts {
		if !slices.Contains(result.Parts(), p) {
			return fmt.Errorf("--parts: there is no %q; there are %s", p, strings.Join(result.Parts(), ", "))
		}
	}
	r.report = &result.Report{}
	if r.kinds, r.report.Without, err = proxy.Choose(r.Proxies); err != nil {
		return err
	}
	for _, program := range []string{"etcd", "iptables", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed: %w; `make bench` installs what is missing", program, err)
		}
	}
	for _, program := range []string{r.Agent, filepath.Join(r.Kubernetes, "kube-apiserver"), filepath.Join(r.Kubernetes, proxy.KubeProxy)} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("%w; `make bench` builds it", err)
		}
	}
	return nil
}

// config is what all proxies have in common.
func (r *run) config(plane *control.Plane) proxy.Config {
	return proxy.Config{
		Dir: r.dir, Plane: plane, Log: r.Log,
		Program: map[string]string{proxy.Switchyard: r.Agent, proxy.KubeProxy: filepath.Join(r.Kubernetes, proxy.KubeProxy)},
	}
}

// plane starts a control plane without any Service.
func (r *run) plane(ctx context.Context, name string) (*control.Plane, error) {
	r.Progress("starting etcd and kube-apiserver")
	dir := filepath.Join(r.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the control plane's directory: %w", err)
	}
	return control.Start(ctx, dir, r.Kubernetes, r.Log)
}

// columns are what parts that compare side by side measure: one of Switchyard's
// backends twice, so that every report says how much equal columns differ.
func (r *run) columns() []proxy.Kind {
	for i, k := range r.kinds {
		if k.Program == proxy.Switchyard {
			return slices.Insert(slices.Clone(r.kinds), i+1, k.Again())
		}
	}
	return append(slices.Clone(r.kinds), r.kinds[0].Again())
}

// side starts a control plane and makes the labs of proxies that watch it; they
// last until the run's parts end.
func (r *run) side(ctx context.Context, name string, kinds []proxy.Kind) (*control.Plane, []*proxy.Proxy, error) {
	plane, err := r.plane(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	r.closes = append(r.closes, plane.Close)
	var all []*proxy.Proxy
	for _, k := range kinds {
		r.Progress("making the nodes and pods of %s", k.Name)
		p, err := proxy.New(ctx, k, r.config(plane))
		if err != nil {
			return nil, nil, err
		}
		r.closes = append(r.closes, p.Close)
		all = append(all, p)
	}
	return plane, all, plane.CreateNode(ctx, all[0].Node) // the same in each lab
}

// close ends what a part has started, the last first.
func (r *run) close() (err error) {
	for _, end := range slices.Backward(r.closes) {
		err = errors.Join(err, end())
	}
	r.closes = nil
	return err
}

func (r *run) traffic(ctx context.Context) error {
	cfg := traffic.Config{Rounds: 800, Fewer: 100, Slice: 5 * time.Millisecond, Progress: r.Progress}
	if r.Quick {
		cfg.Rounds, cfg.Fewer = 80, 0
	}
	plane, all, err := r.side(ctx, "traffic", r.columns())
	if err != nil {
		return err
	}
	for _, p := range all {
		r.Progress("starting %s", p.Name)
		if err := p.StartReady(ctx, netlab.Patient(time.Minute)); err != nil {
			return err
		}
	}
	return traffic.Run(ctx, cfg, plane, all, r.report)
}

// first has sides with more and more Services, all up at a time.
func (r *run) first(ctx context.Context) error {
	c := scale.First{Rounds: 300, Slice: 5 * time.Millisecond, Within: netlab.Patient(50 * time.Second), Progress: r.Progress}
	sizes := []int{result.Few, 10_000, 30_000}
	if r.Quick {
		c.Rounds, sizes = 60, []int{result.Few, 1000}
	}
	var sides []scale.Side
	for _, size := range sizes {
		kinds := r.columns()
		if size > result.Few {
			kinds = scale.Growing(r.kinds)
		}
		plane, all, err := r.side(ctx, fmt.Sprintf("first-%d", size), kinds)
		if err != nil {
			return err
		}
		sides = append(sides, scale.Side{Plane: plane, Proxies: all, Services: size})
	}
	return c.Run(ctx, sides, r.report)
}

// work has the proxies' own work done in turns.
func (r *run) work(ctx context.Context) error {
	w := scale.Work{
		Rounds: 8, Sizes: []int{1000, 10_000, 50_000}, Main: 10_000, Within: netlab.Patient(90 * time.Second), Budget: 5 * time.Second,
		Moves: 10, RowPause: result.RowPause, Pause: 1100 * time.Millisecond, Settle: time.Second, Churn: 15 * time.Second, Progress: r.Progress,
	}
	if r.Quick {
		w.Rounds, w.Sizes, w.Main, w.Budget, w.Churn, w.Settle, w.Few = 2, w.Sizes[:1], 1000, time.Second, time.Second, 300*time.Millisecond, true
	}
	w.Kinds, w.Twice = scale.Growing(r.kinds), scale.Growing(r.columns())
	for _, k := range w.Kinds {
		if k.Program == proxy.Switchyard && len(k.Flags) == 0 && len(w.Audited) == 0 && !r.Quick {
			w.Audited = scale.Audited(k)
		}
	}
	for _, k := range w.Audited {
		r.report.Proxies = append(r.report.Proxies, k.Name)
	}
	plane, err := r.plane(ctx, "work")
	if err != nil {
		return err
	}
	r.closes = append(r.closes, plane.Close)
	known := false
	return w.Run(ctx, plane, func(ctx context.Context, k proxy.Kind, flags ...string) (*proxy.Proxy, error) {
		cfg := r.config(plane)
		cfg.Flags = flags
		p, err := proxy.New(ctx, k, cfg)
		if err != nil || known {
			return p, err
		}
		known = true // the next ones have a node of the same name and addresses
		return p, plane.CreateNode(ctx, p.Node)
	}, r.report)
}

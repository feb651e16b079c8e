// Package cluster measures what one API server spends on a cluster's proxies: many
// agents without a kernel, and hollow kube-proxies in the same run.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	endpoints = 10 // of each Service
	logLines  = 8  // of a program in trouble
	kubemark  = "kubemark"
	apiServer = "kube-apiserver"
)

// Options are what a run is asked for.
type Options struct {
	Kinds         []string      // none: all
	Agents        []int         // how many proxies there are at a time
	MostKubeProxy int           // hollow proxies are a process each: with more agents, there are none beside
	Services      int           // each has 10 endpoints
	Changes       []float64     // a second
	For           time.Duration // how long each number of changes is measured
	Restarts      bool          // also measure a restart of the API server
	Cores         float64       // of the API server whose limit is told
	Kubernetes    string        // directory of kube-apiserver and kubemark
	Version       string
	Log           *slog.Logger
	Progress      func(format string, args ...any)
}

// run is one in progress.
type run struct {
	Options
	dir        string
	plane      *control.Plane
	lab        *netlab.Lab // of one node, where the proxies are
	kubeconfig string
	services   []*control.Placed
	changed    int // changes made so far
	report     *Report
}

// Run measures. With an error it returns what was measured before, or nil.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	r := &run{Options: o}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp("", "switchyard-cluster-"); err != nil {
		return nil, fmt.Errorf("making a directory for logs: %w", err)
	}
	r.report = &Report{
		Version: o.Version, Started: time.Now(), Services: o.Services, Endpoints: endpoints, Cores: o.Cores, Kinds: r.Kinds,
		Machine: result.ThisMachine(map[string][]string{
			apiServer: {filepath.Join(o.Kubernetes, apiServer), "--version"}, "etcd": {"etcd", "--version"},
		}),
	}
	err = r.all(ctx)
	r.report.fit()
	r.report.Took = time.Since(r.report.Started)
	if ctx.Err() != nil {
		return r.report, errors.Join(errors.New("interrupted; all that it made is removed"), os.RemoveAll(r.dir))
	}
	if err != nil {
		return r.report, fmt.Errorf("%w (logs are in %s)", err, r.dir)
	}
	return r.report, os.RemoveAll(r.dir)
}

// check finds what would fail later with a worse message.
func (r *run) check() error {
	if err := netlab.RequireRoot(); err != nil {
		return fmt.Errorf("%w; the benchmark changes nothing outside of them", err)
	}
	if len(r.Kinds) == 0 {
		r.Kinds = Kinds()
	}
	if err := checkKinds(r.Kinds); err != nil {
		return err
	}
	if len(r.Agents) == 0 || slices.Min(r.Agents) < 1 || r.Services < 1 || r.For <= 0 || len(r.Changes) == 0 || slices.Min(r.Changes) < 0 {
		return errors.New("--agents, --services, --changes-per-second and --for: a number above 0 each (changes: 0 or more)")
	}
	needed := []string{filepath.Join(r.Kubernetes, apiServer)}
	if slices.Contains(r.Kinds, KubeProxy) {
		needed = append(needed, filepath.Join(r.Kubernetes, kubemark))
	}
	for _, program := range needed {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("%w; `make bench-cluster` builds it", err)
		}
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		return fmt.Errorf("etcd is not installed: %w; `make bench-cluster` installs it", err)
	}
	return nil
}

// all makes the cluster and measures everything in it.
func (r *run) all(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.create(ctx); err != nil {
		return err
	}
	time.Sleep(backOff) // what the API server does after its start is none of the proxies' cost
	if err := r.measure(ctx, "", 0); err != nil {
		return err
	}
	for _, n := range r.Agents {
		for _, kind := range r.Kinds {
			if kind == KubeProxy && n > r.MostKubeProxy {
				continue
			}
			if err := r.measure(ctx, kind, n); err != nil {
				return fmt.Errorf("%s: %w", name(kind, n), err)
			}
		}
	}
	return nil
}

// create makes the cluster: a control plane, a host for the proxies, and objects.
func (r *run) create(ctx context.Context) (err error) {
	r.Progress("starting etcd and kube-apiserver")
	if r.plane, err = control.Start(ctx, r.dir, r.Kubernetes, r.Log); err != nil {
		return err
	}
	if r.lab, err = netlab.New(ctx, netlab.Config{Nodes: 1, Pods: -1, Log: r.Log}); err != nil {
		return err
	}
	if r.kubeconfig, err = r.plane.Connect(r.host()); err != nil {
		return err
	}
	return r.fill(ctx)
}

// close removes what create made, as far as it came.
func (r *run) close() (err error) {
	if r.lab != nil {
		err = r.lab.Close()
	}
	if r.plane != nil {
		err = errors.Join(err, r.plane.Close())
	}
	return err
}

// host is where the proxies are.
func (r *run) host() *netlab.Host { return r.lab.Nodes[0].Host }

// fill creates Nodes and Services.
func (r *run) fill(ctx context.Context) (err error) {
	nodes := slices.Max(r.Agents)
	r.Progress("creating %d Nodes, and %s Services of %d endpoints", nodes, result.Thousands(r.Services), endpoints)
	for i := range nodes {
		addr := netip.AddrFrom4([4]byte{10, 80, byte(i >> 8), byte(i)})
		if err := r.plane.CreateNodeNamed(ctx, nodeName(i), nil, []netip.Addr{addr}); err != nil {
			return err
		}
	}
	var services []control.Service
	for i := range r.Services {
		s := control.Service{Name: fmt.Sprintf("service-%d", i), Endpoints: proxy.Many(endpoints)}
		s.Ports = []control.Port{{Protocol: corev1.ProtocolTCP, Port: 80, Target: 8080}}
		for k := range s.Endpoints {
			s.Endpoints[k].Node = nodeName((i*endpoints + k) % nodes)
		}
		services = append(services, s)
	}
	r.services, err = r.plane.Fill(ctx, 0, services)
	return err
}

// start starts proxies.
func (r *run) start(kind string, n int) (fleet, error) {
	switch {
	case n == 0:
		return nobody{}, nil
	case kind == KubeProxy:
		return startHollow(r.host(), filepath.Join(r.Kubernetes, kubemark), r.kubeconfig, r.dir, n)
	}
	return startAgents(r.host(), kind, r.kubeconfig, n)
}

// measure measures what so many proxies of a kind cost: their start, changes, and
// the API server's restart.
func (r *run) measure(ctx context.Context, kind string, n int) error {
	f, err := r.startAll(ctx, kind, n)
	if f != nil {
		defer f.stop()
	}
	if err != nil {
		return err
	}
	for _, rate := range r.Changes {
		if err := r.window(ctx, kind, n, rate, f); err != nil {
			return err
		}
	}
	if !r.Restarts {
		return nil
	}
	r.Progress("%s: restart of the API server", name(kind, n))
	_, err = r.storm(ctx, Storm{Kind: kind, Agents: n, What: Restart}, func() (fleet, time.Time, error) {
		if err := r.plane.Restart(ctx); err != nil {
			return f, time.Time{}, err
		}
		since := time.Now()
		return f, since, r.change(ctx)
	})
	return err
}

// startAll measures the start of so many proxies.
func (r *run) startAll(ctx context.Context, kind string, n int) (fleet, error) {
	r.Progress("%s: start", name(kind, n))
	return r.storm(ctx, Storm{Kind: kind, Agents: n, What: Start}, func() (fleet, time.Time, error) {
		f, err := r.start(kind, n)
		return f, time.Time{}, err
	})
}

func name(kind string, n int) string { return fmt.Sprintf("%d × %s", n, cmp.Or(kind, "nobody")) }

// change takes an endpoint from a Service or, the next time round, gives it back.
func (r *run) change(ctx context.Context) error {
	s := r.services[r.changed%len(r.services)].Service
	if r.changed/len(r.services)%2 == 0 {
		s.Endpoints = s.Endpoints[1:]
	}
	r.changed++
	s.Changed = time.Now()
	return r.plane.SetEndpoints(ctx, s)
}

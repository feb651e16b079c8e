// Command demo shows Switchyard at work on this machine: two nodes with pods, no cluster.
//
// Every node and pod is a network namespace. The real agent runs on each node
// and follows manifests in a directory; the demo plays kubelet and controllers
// by rewriting them. It exits with status 1 if one request fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// mostTime bounds the whole demo; it takes a quarter of this.
const mostTime = time.Minute

func main() {
	netlab.Main(nil)
	backend := flag.String("backend", "auto", "the agents' `backend`")
	agent := flag.String("agent", "bin/switchyard", "the agent's `binary`")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the demo at once
	// A reader that leaves (| head) must not end the demo before it has cleaned up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	out := newScreen(os.Stdout)
	err := run(ctx, out, *backend, *agent)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		out.line("\nInterrupted. All that the demo made is removed.")
		os.Exit(130)
	default:
		_, _ = fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// run plays the demo and removes all that it made, however it ends.
func run(ctx context.Context, out *screen, backend, agent string) (err error) {
	if err := netlab.RequireRoot(); err != nil {
		return fmt.Errorf("%w; the demo changes nothing outside of them", err)
	}
	agent, err = filepath.Abs(agent)
	if err != nil {
		return fmt.Errorf("finding the agent's binary: %w", err)
	}
	if _, err := os.Stat(agent); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s yet; `make build` makes it", agent)
	}
	most := netlab.Patient(mostTime)
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not done after %s", most))
	defer cancel()

	dir, err := os.MkdirTemp("", "switchyard-demo-")
	if err != nil {
		return fmt.Errorf("making a directory for manifests and logs: %w", err)
	}
	defer func() { err = keep(err, os.RemoveAll(dir)) }()
	lab, err := netlab.New(ctx, netlab.Config{Nodes: 2, Pods: 3})
	if err != nil {
		return err
	}
	nodes := &agents{binary: agent, backend: backend, dir: dir}
	tearDown := func() error {
		nodes.stop() // first, or the lab cannot remove their cgroups
		return lab.Close()
	}
	// An interrupt ends what a step is waiting for.
	done := context.AfterFunc(ctx, func() { _ = tearDown() })
	defer func() {
		done()
		err = keep(err, tearDown())
	}()

	err = (&demo{out: out, lab: lab, agents: nodes, cluster: newCluster(filepath.Join(dir, "manifests"), lab)}).play(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// keep gives what went wrong and what was left behind because of it. What is
// left behind is told even where the demo was only interrupted.
func keep(err, leftover error) error {
	switch {
	case leftover == nil:
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted, and not all is removed: %w", leftover)
	}
	return errors.Join(err, leftover)
}

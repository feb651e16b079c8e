package checks

import (
	"context"
	"errors"
	"fmt"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// asDaemonSet is what can be asked only of an agent that the cluster itself runs.
func (s *suite) asDaemonSet() []check {
	if !s.lab.IsDaemonSet() {
		return nil
	}
	return []check{
		{"all agents replaced, one by one, under load", s.rolled},
		{"rights: no request refused, no verb unused", s.rights},
	}
}

// rolled replaces all agents as an upgrade does. Those after it do not ask for
// streamed lists, as with an API server that knows none.
func (s *suite) rolled(ctx context.Context) ([]load.Report, error) {
	const before, after = 6, 7
	return s.under(ctx, change{from: before, to: after, conns: s.held(), do: func(ctx context.Context) error {
		if err := s.lab.Roll(ctx, "KUBE_FEATURE_WatchListClient=false"); err != nil {
			return err
		}
		return s.scale(ctx, after)
	}})
}

// rights needs the checks before it, which are all that an agent does.
func (s *suite) rights(ctx context.Context) ([]load.Report, error) {
	used, err := s.lab.Rights(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w\nused: %v", err, used)
	}
	return nil, nil
}

// drained takes all Pods off the last node while requests go on, there too.
func (s *suite) drained(ctx context.Context) ([]load.Report, error) {
	replicas, err := s.replicas(ctx)
	if err != nil {
		return nil, err
	}
	last := s.lab.Topology.Nodes[len(s.nodes)-1].Name
	back := func() error {
		_, err := s.lab.Kubectl(context.WithoutCancel(ctx), nil, "uncordon", last)
		return err
	}
	reports, err := s.under(ctx, change{from: replicas, to: replicas, do: func(ctx context.Context) error {
		_, err := s.lab.Kubectl(ctx, nil, "drain", last, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
		return err
	}})
	return reports, errors.Join(err, back())
}
